"""One step of rows that have nothing to do with each other: each with its own numbers of a `Sampling`, joining and
leaving between any two steps. One program serves every way of drawing.

What a penalty counts are numbers of each token, (B, V), and not the text: so a row may be of any length.
"""

from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.generation.draw import draw
from bert4keras_rwkv.generation.penalties import forbid
from bert4keras_rwkv.generation.sampling import Plan
from bert4keras_rwkv.keras_loader import ops

# Of `Sampling.values`.
NUMBERS = ("temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty", "penalty_decay")
WORD = 32  # ids whose bits are one int32
FADED = 1e-30  # of a count: that a token was drawn is not forgotten


class Rows(NamedTuple):
    """What a batch of rows has beside the network's state.

    token: (B,) int32, drawn last. counts: (B, V) float32, how often each token was drawn; counts fade. bias: (B, V)
    float32, what is added to the logits.
    """

    token: object
    counts: object
    bias: object

    @classmethod
    def one(cls, vocab_size, token=0, bias=()):
        """A row that begins, as NumPy arrays. bias: pairs (id, number)."""
        added = np.zeros((1, vocab_size), "float32")
        for place, number in bias:
            added[0, place] = number
        return cls(np.array([token], "int32"), np.zeros((1, vocab_size), "float32"), added)


def words(vocab_size):
    """How many int32 hold a bit for each id."""
    return -(-vocab_size // WORD)


def unpacked(bits, vocab_size):
    """(V,) bool from int32 (words,) NumPy: bit i of word j is that of the id `WORD` j + i."""
    return np.unpackbits(bits.view("uint8"), count=vocab_size, bitorder="little").view(bool)


def plan_for_all(forbidden):
    """The `Plan` that every row shares. forbidden: ids that no row ever draws.

    A temperature or a share of 0 is a row without noise here, `ALL` as top_k keeps every token, a penalty of 0 changes
    no logit: the draws are those of the program that is made for one such row.
    """
    return Plan(greedy=False, room=0, top_p=True, frequency=True, mask_output=tuple(forbidden))


def step(network, plan, rows, live, seeds, state, values, allowed):
    """Consume each live row's last token and draw the next.

    rows: a `Rows`. live: (B,) bool, the others stay as they are. seeds: (B, 2) int32, (seed, tokens drawn before).
    state: the network's, nested. values: the `NUMBERS`, (B,). allowed: (B, V) bool, the ids that may be drawn.
    Returns (finite, logits, rows, state). finite: (B,) bool, whether the row's logits were numbers. logits: (B, V)
    float32, as the network gave them.
    """
    hidden, state = network.hidden(ops.expand_dims(rows.token, 1), state, ops.expand_dims(live, 1))
    return (*drawn(network, plan, hidden, rows, live, seeds, values, allowed), state)


def drawn(network, plan, hidden, rows, live, seeds, values, allowed):
    """The second half of a step: from hidden vectors (B, D) to (finite, logits, rows)."""
    given = ops.cast(network.logits(hidden), "float32")
    finite = ops.all(given < float("inf"), axis=1)  # false for NaN, too
    presence, frequency, decay = (
        ops.expand_dims(values[name], 1) for name in ("presence_penalty", "frequency_penalty", "penalty_decay")
    )
    counts = rows.counts
    present = ops.cast(counts > 0, "float32")
    logits = given + rows.bias - (presence * present + frequency * counts)
    logits = ops.where(allowed, logits, -float("inf"))
    if plan.mask_output:
        logits = forbid(logits, plan.mask_output)
    token = ops.where(live, draw(logits, plan, values, seeds), rows.token)
    here = ops.equal(ops.arange(logits.shape[-1], dtype="int32"), ops.expand_dims(token, 1))
    faded = present * ops.maximum(counts * decay, FADED) + ops.cast(here, "float32")
    counts = ops.where(ops.expand_dims(live, 1), faded, counts)
    return finite, given, rows._replace(token=token, counts=counts)
