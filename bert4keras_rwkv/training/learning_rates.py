"""Learning rates to begin with, for Adam and its kin, by what trains.

Advice in the field differs by five orders of magnitude, for what trains differs: a state starts at zero and is added to
sums over many tokens, so that it wants steps a hundred times those of a weight. STATE, STATE_AND_SHIFTS and LORA were
found on the shipped model with `scripts/find_learning_rates.py`, PROMPT in runs of `tune`; STATE_AND_LORA and FULL are
careful guesses. For another model or batch find your own, with `callbacks.LearningRateFinder`.
"""

STATE = 0.3  # `enable_state_tuning()`: the state of the recurrence
STATE_AND_SHIFTS = 0.1  # `enable_state_tuning(time_shift_tuning=True)`
LORA = 3e-3  # `enable_lora`
STATE_AND_LORA = 3e-3  # both: the LoRA decides, and the state learns little
PROMPT = 0.1  # a prompt distilled into a state
FULL = 1e-4  # all weights, of a model that is trained already
