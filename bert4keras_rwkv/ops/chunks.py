"""What the recurrences with a matrix-valued state share: how they walk over tokens and chunks, masks, document starts.

Their tensors are (B, T, H, N), their state is (B, H, N, N).
"""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.scan import scan


def real_resets(reset, present):
    """`reset` where the token exists: a masked token begins nothing. None stays None."""
    if reset is None:
        return None
    reset = ops.cast(reset, "bool")
    return reset if present is None else ops.logical_and(reset, ops.cast(present, "bool"))


def without_tokens(x, state):
    """What a recurrence gives for inputs x (B, T, ...) without a token or a row: no y, and the state that came in."""
    dtype = backend.accumulation_dtype(x.dtype)
    return ops.cast(x, dtype), ops.cast(state, dtype)


def each_token(token, xs, state, begins=None, start=None):
    """A recurrence one token at a time. token: (*x (B, H, N), S) -> (y (B, H, N), S).

    xs: the inputs. begins: (B, T) bool, before which tokens the state becomes `start` (`wkv6` says of which shapes),
    or None. Returns y (B, T, H, N) and the last state.
    """
    moved = [ops.moveaxis(x, 1, 0) for x in (*xs, *([] if begins is None else [begins]))]

    def step(S, x):
        if begins is not None:
            *x, new = x
            S = ops.where(new[:, None, None, None], _start_like(start, S), S)
        y, S = token(*x, S)
        return S, y

    state, y = scan(step, state, tuple(moved))
    return ops.moveaxis(y, 0, 1), state


def one_token(token, xs, state, begins=None, start=None):
    """`each_token` for T = 1, without a loop."""
    if begins is not None:
        state = ops.where(begins[:, :1, None, None], _start_like(start, state), state)
    y, state = token(*(x[:, 0] for x in xs), state)
    return y[:, None], state


def each_chunk(form, xs, state, chunk, begins=None, start=None):
    """A recurrence by chunks of `chunk` tokens (a power of two; fewer if T is small).

    form: (*x (G, C, N), S (G, N, N)[, segment (G, C) int32, first (G, N, N) or None]) -> (S, y (G, C, N)), G = B * H;
    the last two where documents begin: how many have begun in the chunk up to each token, and the state they begin
    with. Otherwise as `each_token`. After the last token xs are filled with zeros, which must change nothing.
    """
    B, T, H, N = ops.shape(xs[0])
    while isinstance(T, int) and chunk >= 2 * T:
        chunk //= 2
    split = [_split(x, chunk) for x in xs]
    if begins is None:

        def step(S, x):
            return form(*x, S)

    else:
        split.append(_segments(begins, chunk, H))
        first = None
        if start is not None:
            first = ops.reshape(ops.broadcast_to(ops.cast(start, state.dtype), (B, H, N, N)), (-1, N, N))

        def step(S, x):
            *x, segment = x
            return form(*x, S, segment, first)

    state, y = scan(step, ops.reshape(state, (-1, N, N)), tuple(split))
    y = ops.transpose(ops.reshape(y, (-1, B, H, chunk, N)), (1, 0, 3, 2, 4))
    return ops.reshape(y, (B, -1, H, N))[:, :T], ops.reshape(state, (-1, H, N, N))


def exchanged(readers, writers, own, w):
    """The scores of a chunk, and what its tokens and the state exchange, accurate for every decay.

    readers, writers (G, C, K, N), K of each at every token; own (G, C, K, K): what they make of each other at their own
    token. w (G, C, N): log decay, at most 0; a reader at t sees a writer at s < t decayed by w of all tokens between
    the two. Returns
    scores (G, C * K, C * K), 0 for later tokens; readers (G, C * K, N) decayed from the chunk's first token on; writers
    (G, C * K, N) decayed to its last; the whole decay (G, N).

    Nothing is subtracted or divided. Blocks double: when two neighbours of m tokens join, a reader of the later one has
    decayed since the block's first token and a writer of the earlier one to its last, so their product is the square
    of scores between the two.
    """
    C, K, N = readers.shape[-3:]
    total = ops.exp(w)
    scores = own
    m = 1
    while m < C:
        pairs = (-1, C // (2 * m), 2, m * K, N)
        readers, writers = ops.reshape(readers, pairs), ops.reshape(writers, pairs)
        total = ops.reshape(total, (-1, C // (2 * m), 2, 1, N))
        earlier, later = total[:, :, 0], total[:, :, 1]
        if m * K == 1:
            between = ops.sum(readers[:, :, 1] * writers[:, :, 0], axis=-1, keepdims=True)
        else:
            between = readers[:, :, 1] @ transposed(writers[:, :, 0])
        scores = ops.reshape(scores, (-1, C // (2 * m), 2, m * K, m * K))
        above = ops.concatenate([scores[:, :, 0], ops.zeros_like(between)], axis=-1)
        below = ops.concatenate([between, scores[:, :, 1]], axis=-1)
        scores = ops.concatenate([above, below], axis=-2)
        one = ops.ones_like(earlier)
        readers = readers * ops.stack([one, earlier], axis=2)
        writers = writers * ops.stack([later, one], axis=2)
        total = earlier * later
        m *= 2
    readers, writers = ops.reshape(readers, (-1, C * K, N)), ops.reshape(writers, (-1, C * K, N))
    return ops.reshape(scores, (-1, C * K, C * K)), readers, writers, ops.reshape(total, (-1, N))


def transposed(x):
    """The last two axes exchanged."""
    return ops.swapaxes(x, -1, -2)


def _start_like(start, state):
    return ops.zeros_like(state) if start is None else ops.broadcast_to(ops.cast(start, state.dtype), ops.shape(state))


def _split(x, chunk):
    """(B, T, H, N) -> (chunks, B * H, chunk, N)."""
    count, padding = _count(x, chunk)
    x = ops.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
    x = ops.reshape(x, (-1, count, chunk, *x.shape[2:]))
    return ops.reshape(ops.transpose(x, (1, 0, 3, 2, 4)), (count, -1, chunk, x.shape[-1]))


def _segments(begins, chunk, heads):
    """(B, T) bool -> (chunks, B * H, chunk) int32: how many documents have begun in the chunk."""
    count, padding = _count(begins, chunk)
    begun = ops.pad(ops.cast(begins, "int32"), ((0, 0), (0, padding)))
    begun = ops.cumsum(ops.reshape(begun, (-1, count, chunk)), axis=-1)
    return ops.repeat(ops.transpose(begun, (1, 0, 2)), heads, axis=1)


def _count(x, chunk):
    """How many chunks the T tokens of x (B, T, ...) make, and how many tokens the last one lacks."""
    T = ops.shape(x)[1]
    count = (T + chunk - 1) // chunk
    return count, count * chunk - T
