"""From logits to tokens: the likeliest one, or one drawn at random.

A token is drawn by adding Gumbel noise (noise.py) to the logits of the tokens that may be drawn (filters.py) and taking
the largest sum. Nothing is sorted here. The token with the largest sum of all is taken; if it stands too far back in
the order to be kept, so does everything behind it: drop it and them, and take the largest sum of the rest. The first
one that is kept has the largest sum of all kept ones. With probability p or more that is the first try, so rounds are
few.

The tries look at few ids where that is enough. The vocabulary is cut into blocks. The k first tokens of the order lie
in the k blocks with the largest maxima. Any set of blocks holds all tokens above the largest logit outside it: if these
have probability p, top-p keeps no others.
"""

from keras import ops

from .noise import gumbel_all, gumbel_runs

BLOCK = 64
SMALLEST = 4096  # vocabularies below this are not worth a selection
TOP_P_BLOCKS = 128


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
    before, race = _temperatures(plan, ops.expand_dims(values["temperature"], 1))
    logits = logits * before
    size = logits.shape[-1]
    count = plan.top_k if plan.top_k is not None and plan.top_k < size else None
    if count is None and not plan.top_p:
        return first_max(race(logits, gumbel_all(seeds, size)))
    share = ops.expand_dims(values["top_p"], 1) if plan.top_p else None
    if size < SMALLEST or (count or 0) > size // (2 * BLOCK):
        return _draw_from_all(logits, race, seeds, _limit(logits, share), count)
    return _draw_from_blocks(logits, race, seeds, share, count)


def _temperatures(plan, temperature):
    """The factor of the logits before the filters, and the function that adds noise to the logits that are left.

    Temperature 0 is a row without noise.
    """
    hot = temperature > 0
    factor = ops.where(hot, 1.0 / ops.where(hot, temperature, 1.0), 1.0)
    loudness = ops.cast(hot, "float32")
    if plan.temperature_after:
        return 1.0, lambda logits, noise: logits * factor + noise * loudness
    return factor, lambda logits, noise: logits + noise * loudness


def _limit(logits, share):
    """The weight, in units of the likeliest token's, that the tokens before a kept one stay below. (B, 1) or None."""
    if share is None:
        return None
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    limit = share * ops.sum(weights, axis=-1, keepdims=True)
    return ops.where(share < 1.0, limit, float("inf"))


def _draw_from_all(logits, race, seeds, limit, count):
    noisy = race(logits, gumbel_all(seeds, logits.shape[-1]))
    return _first_kept(logits, noisy, limit, count)


def _draw_from_blocks(logits, race, seeds, share, count):
    number = -(-logits.shape[-1] // BLOCK)
    padded = ops.pad(logits, ((0, 0), (0, number * BLOCK - logits.shape[-1])), constant_values=-float("inf"))
    blocks = ops.reshape(padded, (-1, number, BLOCK))
    maxima = ops.max(blocks, axis=-1)
    chosen, outside = _first_blocks(maxima, min(count or TOP_P_BLOCKS, number - 1))
    part = _take_blocks(blocks, chosen)
    limit = _limit(logits, share)

    def within():
        noise = ops.reshape(gumbel_runs(seeds, chosen * BLOCK, BLOCK), (-1, part.shape[1]))
        at = _first_kept(part, race(part, noise), limit, count)
        block = ops.take_along_axis(chosen, ops.expand_dims(at // BLOCK, 1), axis=1)[:, 0]
        return block * BLOCK + at % BLOCK

    if count is not None:
        return within()
    weights = ops.exp(part - ops.max(part, axis=-1, keepdims=True))
    sure = ops.sum(ops.where(part > outside, weights, 0.0), axis=-1, keepdims=True)
    return ops.cond(ops.all(sure >= limit), within, lambda: _draw_from_all(logits, race, seeds, limit, None))


def _first_blocks(maxima, count):
    """The first `count` blocks, ranked by maximum and among equals by number.

    maxima: (B, M). Returns their numbers in rising order, (B, count) int32, and the largest maximum of the others,
    (B, 1). `top_k` orders equal values differently on different backends: here only its values are used.
    """
    number = maxima.shape[-1]
    largest = ops.top_k(maxima, count + 1)[0]
    last, outside = largest[:, count - 1 : count], largest[:, count:]
    above, equal = maxima > last, ops.equal(maxima, last)
    room = count - ops.sum(ops.cast(above, "int32"), axis=-1, keepdims=True)
    among_equals = ops.cumsum(ops.cast(equal, "int32"), axis=-1)
    chosen = ops.logical_or(above, ops.logical_and(equal, among_equals <= room))
    backwards = ops.arange(number, 0, -1, dtype="float32")
    return number - ops.cast(ops.top_k(ops.where(chosen, backwards, 0.0), count)[0], "int32"), outside


def _take_blocks(blocks, chosen):
    """blocks (B, M, S), chosen (B, C) -> (B, C * S)."""
    number, size = blocks.shape[1:]
    rows = ops.expand_dims(ops.arange(ops.shape(chosen)[0], dtype="int32"), 1)
    part = ops.take(ops.reshape(blocks, (-1, size)), rows * number + chosen, axis=0)
    return ops.reshape(part, (-1, chosen.shape[1] * size))


def _first_kept(logits, noisy, limit, count):
    """The largest of `noisy` whose token is kept, as an index. logits, noisy: (B, S), in the order of ids.

    Kept: the tokens before it have together less weight than `limit` (B, 1) and number less than `count`; either may be
    None. The first token of all is always kept.
    """
    at = ops.arange(logits.shape[-1], dtype="int32")
    weights = None if limit is None else ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))

    def before(value, index):
        return ops.logical_or(logits > value, ops.logical_and(ops.equal(logits, value), at < index))

    def searching(found, index, value):
        return ops.logical_not(ops.all(found))

    def search(found, index, value):
        best = first_max(ops.where(before(value, index), noisy, -float("inf")))
        index = ops.where(found, index, ops.expand_dims(best, 1))
        value = ops.take_along_axis(logits, index, axis=1)
        ahead = before(value, index)
        number = ops.sum(ops.cast(ahead, "int32"), axis=-1, keepdims=True)
        kept = number < (logits.shape[-1] if count is None else count)
        if weights is not None:
            weight = ops.sum(ops.where(ahead, weights, 0.0), axis=-1, keepdims=True)
            kept = ops.logical_and(kept, weight < limit)
        return ops.logical_or(kept, ops.equal(number, 0)), index, value

    row = ops.zeros_like(logits[:, :1])
    start = (row > 0, ops.cast(row, "int32") + logits.shape[-1], row - float("inf"))
    return ops.while_loop(searching, search, start)[1][:, 0]
