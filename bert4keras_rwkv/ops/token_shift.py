"""Token shift: each token beside the one before it, for any mask and any document starts."""

from bert4keras_rwkv.keras_loader import ops


def shift_rows(present, reset=None):
    """Where each token finds its predecessor. Computed once for all layers of a forward pass.

    present (B, T) bool, reset (B, T) bool or None. Returns (before (B, T), last (B, 1)), int32 rows of the table
    [incoming last, start, x_0, ..., x_{T-1}]: the predecessor of a real token is the last real token before it, the
    incoming one for the first, the start where a document begins. What a masked token finds means nothing.
    """
    present = ops.cast(present, "bool")
    T = ops.shape(present)[1]
    at = ops.arange(T, dtype="int32")[None]
    order = ops.cast(ops.argsort(ops.where(present, at, at + T), axis=1), "int32")  # place of the j-th real token
    real = ops.cast(present, "int32")
    count = ops.cast(ops.cumsum(real, axis=1), "int32")

    def row_of(j):  # the j-th real token, from 1; 0 is the incoming one
        # `where`, for Keras' maximum of an int tensor and 0 is a float once floatx is bfloat16.
        return ops.where(j > 0, ops.take_along_axis(order, ops.where(j > 0, j - 1, 0), axis=1) + 2, 0)

    before, last = row_of(count - real), row_of(count[:, -1:])
    if reset is not None:
        before = ops.where(ops.cast(reset, "bool"), 1, before)
    return before, last


def token_shift(x, last, present=None, reset=None, start=None, rows=None):
    """Pair each token with its predecessor.

    x (B, T, D), last (B, D): the predecessor of the first token. start (D,) or (B, D) or None (zero): the predecessor
    of a token where `reset` is true. rows: `shift_rows(present, reset)`, needed when `present` is given and T > 1.
    Returns previous (B, T, D) and the last real token (B, D), of x's dtype.
    """
    last = ops.cast(last, x.dtype)
    first = ops.zeros_like(last) if start is None else ops.broadcast_to(ops.cast(start, x.dtype), ops.shape(last))
    if x.shape[1] == 1 or present is None:
        before = last[:, None] if x.shape[1] == 1 else ops.concatenate([last[:, None], x[:, :-1]], axis=1)
        if reset is not None:
            before = ops.where(ops.cast(reset, "bool")[..., None], first[:, None], before)
        newest = x[:, -1]
        return before, newest if present is None else ops.where(ops.cast(present, "bool"), newest, last)
    table = ops.concatenate([last[:, None], first[:, None], x], axis=1)
    return _take(table, rows[0]), _take(table, rows[1])[:, 0]


def _take(table, rows):
    """table (B, R, D), rows (B, K) -> (B, K, D). One gather of rows."""
    R, D = ops.shape(table)[1], table.shape[2]
    flat = rows + ops.arange(ops.shape(table)[0], dtype="int32")[:, None] * R
    return ops.take(ops.reshape(table, (-1, D)), flat, axis=0)
