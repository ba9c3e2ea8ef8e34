"""Learning rates to begin with, for Adam and its kin, by what trains.

Advice in the field differs by five orders of magnitude, for what trains differs: a state starts at zero and is added to
sums over many tokens, so that it wants steps a thousand times those of a weight. These were found on the shipped model
with `callbacks.LearningRateFinder`, see `scripts/find_learning_rates.py`. For another model or batch find your own.
"""

STATE = 0.3  # `enable_state_tuning()`: the state of the recurrence
STATE_AND_SHIFTS = 0.1  # `enable_state_tuning(time_shift_tuning=True)`
LORA = 3e-3  # `enable_lora`
STATE_AND_LORA = 3e-3  # both: the LoRA decides, and the state learns little
PROMPT = 0.1  # a prompt distilled into a state
FULL = 1e-4  # all weights, of a model that is trained already
