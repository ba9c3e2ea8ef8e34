"""One step of rows that have nothing to do with each other: each with its own numbers of a `Sampling`, joining and
leaving between any two steps. One program serves every way of drawing.

What a penalty counts are numbers of each token, (B, V), and not the text: so a row may be of any length.
"""

from bert4keras_rwkv.generation.draw import draw
from bert4keras_rwkv.generation.penalties import forbid
from bert4keras_rwkv.generation.sampling import Plan
from bert4keras_rwkv.keras_loader import ops

NUMBERS = ("temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty")  # of `Sampling.values`


def plan_for_all(forbidden):
    """The `Plan` that every row shares. forbidden: ids that no row ever draws.

    A temperature or a share of 0 is a row without noise here, `ALL` as top_k keeps every token, a penalty of 0 changes
    no logit: the draws are those of the program that is made for one such row.
    """
    return Plan(greedy=False, room=0, top_p=True, frequency=True, mask_output=tuple(forbidden))


def step(network, plan, token, live, seeds, counts, state, values):
    """Consume each live row's last token and draw the next.

    token: (B,) int32. live: (B,) bool, the others stay as they are. seeds: (B, 2) int32, (seed, tokens drawn before).
    counts: (B, V) float32, how often each token was drawn. state: the network's, nested. values: the `NUMBERS`, (B,).
    Returns (token, finite, counts, state); finite (B,) bool: whether the row's logits were numbers.
    """
    hidden, state = network.hidden(ops.expand_dims(token, 1), state, ops.expand_dims(live, 1))
    return (*drawn(network, plan, hidden, live, seeds, counts, values), state)


def drawn(network, plan, hidden, live, seeds, counts, values):
    """The second half of a step: from hidden vectors (B, D) to (token, finite, counts)."""
    logits = ops.cast(network.logits(hidden), "float32")
    finite = ops.all(logits < float("inf"), axis=1)  # false for NaN, too
    presence, frequency = (ops.expand_dims(values[f"{name}_penalty"], 1) for name in ("presence", "frequency"))
    logits = logits - (presence * ops.minimum(counts, 1.0) + frequency * counts)
    if plan.mask_output:
        logits = forbid(logits, plan.mask_output)
    token = draw(logits, plan, values, seeds)
    here = ops.equal(ops.arange(logits.shape[-1], dtype="int32"), ops.expand_dims(token, 1))
    counted = ops.logical_and(here, ops.expand_dims(live, 1))
    return token, finite, counts + ops.cast(counted, "float32")
