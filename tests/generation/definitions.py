"""Which tokens may be drawn: the plain definitions, by sorting.

Tokens are ranked by logit, the higher first, and among equals by id, the lower first. Both filters keep the first
tokens of that order, so keeping what both keep is `ops.minimum` of the two. Decoding draws from the same sets without
sorting (draw.py); these functions are what it is tested against.
"""

from bert4keras_rwkv.keras_loader import ops


def keep_top_k(logits, k):
    """Set to -inf every token but the first `k`. logits (B, V), k an int -> (B, V)."""
    count = ops.full((logits.shape[0], 1), k, "int32")
    return _keep_first(logits, ops.sort(logits, axis=-1), count)


def keep_top_p(logits, p):
    """Set to -inf every token outside the smallest set of first tokens that holds probability `p`.

    logits (B, V), p a float or (B, 1) -> (B, V). The token that reaches p is kept; the likeliest token always stays, so
    p -> 0 is greedy. Probabilities are those of `softmax(logits)`.
    """
    ascending = ops.sort(logits, axis=-1)
    mass = ops.cumsum(ops.flip(ops.softmax(ascending, axis=-1), axis=-1), axis=-1)
    before = ops.pad(mass[:, :-1], ((0, 0), (1, 0)))
    count = ops.sum(ops.cast(before < p, "int32"), axis=-1, keepdims=True)
    return _keep_first(logits, ascending, ops.where(count > 0, count, 1))


def _keep_first(logits, ascending, count):
    """Keep the first `count` (B, 1) tokens of each row."""
    size = logits.shape[-1]
    last = ops.take_along_axis(ascending, ops.where(count < size, size - count, 0), axis=-1)
    above, equal = logits > last, ops.equal(logits, last)
    room = count - ops.sum(ops.cast(above, "int32"), axis=-1, keepdims=True)
    among_equals = ops.cumsum(ops.cast(equal, "int32"), axis=-1)
    kept = ops.logical_or(above, ops.logical_and(equal, among_equals <= room))
    return ops.where(kept, logits, -float("inf"))
