"""What the recurrences with a matrix-valued state share: masks, document starts, and time cut into chunks."""

from keras import ops


def real(reset, present):
    """`reset` where the token exists: a masked token begins nothing."""
    reset = ops.cast(reset, "bool")
    return reset if present is None else ops.logical_and(reset, ops.cast(present, "bool"))


def start_like(start, state):
    """The state (B, H, N, N) in which a document begins; None is zero."""
    return ops.zeros_like(state) if start is None else ops.broadcast_to(ops.cast(start, state.dtype), ops.shape(state))


def chunk_length(T, longest):
    """`longest` (a power of two), or a smaller one that T tokens (an int, or unknown) still fill by half."""
    while isinstance(T, int) and longest >= 2 * T:
        longest //= 2
    return longest


def split(x, chunk):
    """(B, T, H, N) -> (chunks, B * H, chunk, N), zeros after the last token."""
    count, padding = _count(x, chunk)
    x = ops.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
    x = ops.reshape(x, (-1, count, chunk, *x.shape[2:]))
    return ops.reshape(ops.transpose(x, (1, 0, 3, 2, 4)), (count, -1, chunk, x.shape[-1]))


def join(y, T, heads):
    """(chunks, B * H, chunk, N) -> (B, T, H, N): the inverse of `split`."""
    count, _, chunk, N = ops.shape(y)
    y = ops.transpose(ops.reshape(y, (count, -1, heads, chunk, N)), (1, 0, 3, 2, 4))
    return ops.reshape(y, (-1, count * chunk, heads, N))[:, :T]


def segments(begins, chunk, heads):
    """begins (B, T) bool, where documents begin -> (chunks, B * H, chunk) int32: how many have begun in the chunk."""
    count, padding = _count(begins, chunk)
    begun = ops.pad(ops.cast(begins, "int32"), ((0, 0), (0, padding)))
    begun = ops.cumsum(ops.reshape(begun, (-1, count, chunk)), axis=-1)
    return ops.repeat(ops.transpose(begun, (1, 0, 2)), heads, axis=1)


def transposed(x):
    """The last two axes exchanged."""
    return ops.swapaxes(x, -1, -2)


def _count(x, chunk):
    """How many chunks the T tokens of x (B, T, ...) make, and how many tokens the last one lacks."""
    T = ops.shape(x)[1]
    count = (T + chunk - 1) // chunk
    return count, count * chunk - T
