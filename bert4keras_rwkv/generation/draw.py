"""From logits to tokens: the likeliest one, or one drawn at random.

A token is drawn by adding Gumbel noise (noise.py) to the logits of the tokens that may be drawn and taking the largest
sum. Nothing is sorted here, and the noise of few ids is computed to the end.

Try and drop: the token with the largest sum of all is taken; if it stands too far back in the order (the higher logit
first, of equal ones the lower id) to be kept, so does everything behind it: drop it and them, and take the largest sum
of the rest. The first one that is kept has the largest sum of all kept ones. With probability p or more that is the
first try, so tries are few.

Few ids: the vocabulary is cut into blocks. The k first tokens of the order lie in the k blocks with the largest maxima.
For all tokens: noise = -log(E) with E = -log(1 - u) >= u, so exp(-sum) >= u * exp(-logit), which needs no logarithm.
The blocks with the smallest such bounds are looked at closely; a sum found there that no bound elsewhere reaches is the
largest.
"""

import math

from bert4keras_rwkv.generation.noise import gumbel_all, gumbel_runs, uniform_all
from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops.backend import materialise

BLOCK = 64
SMALLEST = 4096  # vocabularies below this are not worth a selection
CLOSE = 16  # blocks looked at closely at a time
COLD = 1e-30  # no noise matters at temperatures below this, and logits that are divided by them overflow


def first_max(x):
    """The first index of the maximum. x: (B, V) without NaN. Returns (B,) int32.

    Written out because XLA's own argmax, fused with what makes x, is many times slower on a CPU.
    """
    size = x.shape[-1]
    found = ops.equal(x, ops.max(x, axis=-1, keepdims=True))
    return ops.min(ops.where(found, ops.arange(size, dtype="int32"), size - 1), axis=-1)


def draw(logits, plan, values, seeds):
    """The next token of each row.

    logits: (B, V) float32; NaN counts as -inf, and of a row without any finite logit some id of the vocabulary comes
    out. plan: `Sampling.plan()`. values: `Sampling.values(B)`, one number a row. seeds: (B, 2) int32, see noise.py.
    Returns (B,) int32.
    """
    logits = ops.where(ops.isnan(logits), -float("inf"), logits)
    if plan.greedy:
        return first_max(logits)
    temperature = _Temperature(plan, ops.expand_dims(values["temperature"], 1))
    logits = temperature.before(logits)
    size = logits.shape[-1]
    count = None if plan.room is None else ops.expand_dims(values["top_k"], 1)
    share = ops.expand_dims(values["top_p"], 1) if plan.top_p else None
    everything = _Ranked(logits, ops.expand_dims(ops.arange(size, dtype="int32"), 0), share, count)
    if size < SMALLEST:
        return _draw_closely(everything, temperature, seeds)
    if plan.room and plan.room <= size // (4 * BLOCK):
        return _draw_from_first_blocks(everything, temperature, seeds, plan.room)
    return _draw_from_bounds(everything, temperature, seeds)


class _Temperature:
    """Division by the temperature before or after the filters. Temperature 0, or nearly, is a row without noise."""

    def __init__(self, plan, temperature):
        self.after = plan.temperature_after
        self.hot = temperature > COLD
        self.factor = ops.where(self.hot, 1.0 / ops.where(self.hot, temperature, 1.0), 1.0)

    def before(self, logits):
        return logits if self.after else logits * self.factor

    def sums(self, logits, noise):
        """What the drawn token has the largest of."""
        return self.scaled(logits) + ops.where(self.hot, noise, 0.0)

    def scaled(self, logits):
        return logits * self.factor if self.after else logits


class _Ranked:
    """Tokens by logit, the higher first, of equal ones the lower id first, and which of them are kept.

    logits: (B, S). ids: (1 or B, S), rising.

    share: (B, 1), of the probability that is kept. count: (B, 1) int32, how many are. None for all.
    """

    def __init__(self, logits, ids, share, count):
        self.logits, self.ids, self.count, self.limit = logits, ids, count, None
        top = ops.max(logits, axis=-1, keepdims=True)
        self.top = ops.where(top > -float("inf"), top, 0.0)
        if share is not None:
            self.weights = materialise(ops.exp(logits - self.top))
            limit = share * ops.sum(self.weights, axis=-1, keepdims=True)
            self.limit = ops.where(share < 1.0, limit, float("inf"))

    def part(self, logits, ids):
        """Some of the tokens, among them all that can be kept."""
        part = _Ranked(logits, ids, None, self.count)
        part.limit = self.limit
        if self.limit is not None:
            part.weights = ops.exp(logits - self.top)
        return part

    def before(self, logit, index):
        """(B, S) bool: the tokens that stand before the one with this logit and id, both (B, 1)."""
        return ops.logical_or(self.logits > logit, ops.logical_and(ops.equal(self.logits, logit), self.ids < index))

    def keeps(self, logit, index):
        """(B, 1) bool: whether the token is kept. The first one always is."""
        kept = ops.ones_like(index) > 0
        if self.limit is None and self.count is None:
            return kept
        ahead = self.before(logit, index)
        if self.count is not None:
            kept = ops.sum(ops.cast(ahead, "int32"), axis=-1, keepdims=True) < self.count
        if self.limit is not None:
            weight = ops.sum(ops.where(ahead, self.weights, 0.0), axis=-1, keepdims=True)
            kept = ops.logical_and(kept, ops.logical_or(weight < self.limit, weight <= 0.0))
        return kept


def _try_and_drop(found, index, logit, some, sums, everything, bound=None):
    """Try the tokens of `some` by falling `sums` (B, S), as long as they are above `bound` (B, 1) if there is one.

    found: (B, 1) bool. index (B, 1) int32 and logit (B, 1) are the token that was tried last, or found. Only tokens
    before it are tried. Returns the three after as many tries as possible.
    """

    def trying(found, index, logit, active):
        return ops.any(active)

    def attempt(found, index, logit, active):
        left = ops.where(some.before(logit, index), sums, -float("inf"))
        best = ops.expand_dims(first_max(left), 1)
        if bound is not None:
            active = ops.logical_and(active, ops.take_along_axis(left, best, axis=1) > bound)
        ids = ops.broadcast_to(some.ids, ops.shape(sums))
        index = ops.where(active, ops.take_along_axis(ids, best, axis=1), index)
        logit = ops.where(active, ops.take_along_axis(some.logits, best, axis=1), logit)
        kept = everything.keeps(logit, index)
        return (
            ops.logical_or(found, ops.logical_and(active, kept)),
            index,
            logit,
            ops.logical_and(active, ops.logical_not(kept)),
        )

    return ops.while_loop(trying, attempt, (found, index, logit, ops.logical_not(found)))[:3]


def _untried(everything):
    """The start of `_try_and_drop`: behind the last token."""
    row = ops.zeros_like(everything.logits[:, :1])
    return row > 0, ops.cast(row, "int32") + everything.logits.shape[-1], row - float("inf")


def _draw_closely(everything, temperature, seeds):
    """Every sum computed."""
    noise = gumbel_all(seeds, everything.logits.shape[-1])
    sums = temperature.sums(everything.logits, noise)
    if everything.limit is None and everything.count is None:
        return first_max(sums)
    return _try_and_drop(*_untried(everything), everything, sums, everything)[1][:, 0]


def _draw_from_first_blocks(everything, temperature, seeds, room):
    """Only the blocks that hold the first `room` tokens, no fewer than are kept."""
    blocks = _blocks(everything.logits, -float("inf"))
    chosen = _first_blocks(ops.max(blocks, axis=-1), room)
    some, sums = _look_closely(blocks, chosen, everything, temperature, seeds)
    return _try_and_drop(*_untried(everything), some, sums, some)[1][:, 0]


def _draw_from_bounds(everything, temperature, seeds):
    """All blocks, but closely only those whose bounds say that they may hold the largest sum."""
    logits, size = everything.logits, everything.logits.shape[-1]
    # Beyond 80 no noise can make up for it: the largest is 33 log 2.
    if everything.limit is None or temperature.after:
        lengths = ops.exp(ops.minimum(temperature.scaled(everything.top) - temperature.scaled(logits), 80.0))
    else:
        lengths = 1.0 / ops.maximum(everything.weights, math.exp(-80))
    bounds = materialise(ops.where(temperature.hot, uniform_all(seeds, size), 0.5) * lengths)
    blocks = _blocks(logits, -float("inf"))
    top = temperature.scaled(everything.top)
    rounding = 1e-4 + 1e-6 * ops.abs(top)

    def attempt(bounds, found, index, logit):
        smallest = -ops.min(_blocks(bounds, float("inf")), axis=-1)
        # Not the values of the first 16 and the bound of the 17th: XLA has a quick `top_k` only where it is not sliced.
        smallest, chosen = ops.top_k(smallest, CLOSE)
        chosen = ops.sort(ops.cast(chosen, "int32"), axis=-1)
        bound = top - ops.log(-ops.min(smallest, axis=-1, keepdims=True)) + rounding
        some, sums = _look_closely(blocks, chosen, everything, temperature, seeds)
        return _try_and_drop(found, index, logit, some, sums, everything, bound)

    def again(found, index, logit, going):
        left = ops.where(everything.before(logit, index), bounds, float("inf"))
        new = attempt(left, found, index, logit)
        moved = ops.not_equal(new[1], index)
        return *new, ops.logical_and(moved, ops.logical_not(new[0]))

    found, index, logit = attempt(bounds, *_untried(everything))
    going = ops.logical_and(index < size, ops.logical_not(found))
    found, index, _, _ = ops.while_loop(lambda *carry: ops.any(carry[3]), again, (found, index, logit, going))
    return ops.cond(ops.all(found), lambda: index[:, 0], lambda: _draw_closely(everything, temperature, seeds))


def _look_closely(blocks, chosen, everything, temperature, seeds):
    """The tokens of the chosen blocks (B, C), and their sums. Returns a `_Ranked` of (B, C * BLOCK), and sums."""
    number, flat = blocks.shape[1], chosen.shape[1] * BLOCK
    rows = ops.expand_dims(ops.arange(ops.shape(chosen)[0], dtype="int32"), 1)
    logits = ops.take(ops.reshape(blocks, (-1, BLOCK)), rows * number + chosen, axis=0)
    logits = ops.reshape(logits, (-1, flat))
    ids = ops.expand_dims(chosen * BLOCK, -1) + ops.arange(BLOCK, dtype="int32")
    noise = ops.reshape(gumbel_runs(seeds, chosen * BLOCK, BLOCK), (-1, flat))
    return everything.part(logits, ops.reshape(ids, (-1, flat))), temperature.sums(logits, noise)


def _blocks(x, fill):
    """(B, V) -> (B, M, BLOCK), the last block filled up."""
    missing = -x.shape[-1] % BLOCK
    padded = ops.pad(x, ((0, 0), (0, missing)), constant_values=fill) if missing else x
    return ops.reshape(padded, (-1, padded.shape[-1] // BLOCK, BLOCK))


def _first_blocks(maxima, count):
    """The first `count` blocks, ranked by maximum and among equals by number.

    maxima: (B, M). Returns their numbers in rising order, (B, count) int32. `top_k` orders equal values differently on
    different backends: here only its values are used.
    """
    number = maxima.shape[-1]
    last = ops.min(ops.top_k(maxima, count)[0], axis=-1, keepdims=True)
    above, equal = maxima > last, ops.equal(maxima, last)
    room = count - ops.sum(ops.cast(above, "int32"), axis=-1, keepdims=True)
    among_equals = ops.cumsum(ops.cast(equal, "int32"), axis=-1)
    chosen = ops.logical_or(above, ops.logical_and(equal, among_equals <= room))
    backwards = ops.arange(number, 0, -1, dtype="float32")
    return number - ops.cast(ops.top_k(ops.where(chosen, backwards, 0.0), count)[0], "int32")
