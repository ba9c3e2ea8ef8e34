"""The RWKV-7 recurrence ("Goose", arXiv 2503.14456, section 4): a state that can also forget a chosen key.

    S_t = diag(e^{w_t}) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t        y_t = r_t S_t

The plain loop is the truth; the chunked form is what runs. Both are float32 inside (float64 when r is float64; there
`ops.matmul` of PyTorch would give float32).
"""

from functools import partial

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.chunks import (
    each_chunk,
    each_token,
    exchanged,
    one_token,
    real_resets,
    transposed,
    without_tokens,
)
from bert4keras_rwkv.ops.gradients import unless_differentiated
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.ops.kernels.native import native
from bert4keras_rwkv.ops.shapes import Shapes

# B 1 and 4, T 256 to 1024, 12 heads of 64, on a CPU. JAX: with gradient, chunks of 16 take 0.75 of the time of 32 and a
# quarter of that of the loop; without, the loop takes half the time of any chunks. TensorFlow and PyTorch: chunks of 32
# are the fastest, with gradient 0.4 to 0.8 of the time of 16.
CHUNK = 32
CHUNK_JAX_CPU = 16
SHAPES = Shapes("wkv7", dict.fromkeys("rwkvab", "BTHN"), "HNN")


def wkv7_loop(r, w, k, v, a, b, state, present=None, reset=None, start=None):
    """`wkv7` one token at a time, as the equation reads; the reference for every other form."""
    xs, state = _prepare((r, w, k, v, a, b), state, present)
    return each_token(_token, xs, state, real_resets(reset, present), start)


def wkv7_step(r, w, k, v, a, b, state, present=None, reset=None, start=None):
    """`wkv7` for T = 1: one pass over the state, no loop."""
    xs, state = _prepare((r, w, k, v, a, b), state, present)
    return one_token(_token, xs, state, real_resets(reset, present), start)


def wkv7_chunked(r, w, k, v, a, b, state, present=None, reset=None, start=None, bounded=False, chunk=None):
    """`wkv7` by chunks of `chunk` tokens (a power of two; bounded: at most 64): matrix products inside a chunk, a loop
    over chunks.
    """
    if chunk is None:
        chunk = CHUNK_JAX_CPU if _on_jax_cpu() else CHUNK
    xs, state = _prepare((r, w, k, v, a, b), state, present)
    return each_chunk(partial(_chunk, bounded=bounded), xs, state, chunk, real_resets(reset, present), start)


def wkv7_fastest(*args, bounded=False):
    """`wkv7` by chunks, but where JAX takes no gradient on a CPU: there the loop is faster."""
    chunked = partial(wkv7_chunked, bounded=bounded)
    return (unless_differentiated(wkv7_loop, chunked) if _on_jax_cpu() else chunked)(*args)


def _on_jax_cpu():
    return backend.name() == "jax" and not backend.has_accelerator()


def _token(r, w, k, v, a, b, S):
    """One token. r, w, k, v, a, b (B, H, N), S (B, H, N, N) -> y (B, H, N), S."""
    aS = a[..., None, :] @ S
    S = ops.exp(w)[..., None] * S + b[..., None] * aS + k[..., None] * v[..., None, :]
    return (r[..., None, :] @ S)[..., 0, :], S


def _chunk(r, w, k, v, a, b, S, segment=None, first=None, bounded=False):
    """One chunk, as `ops.chunks.each_chunk` wants it.

    What token t reads from the state is p_t = a_t S_{t-1}; what it leaves is k_t^T v_t + b_t^T p_t. So with the
    strictly lower triangle of scores between a and b called L, the p of all tokens solve (I - L) P = (what a reads of
    S and of k^T v).
    """
    C = r.shape[-2]
    scores, readers, writers, decay = (_exchanged_bounded if bounded else _exchanged)(r, w, k, a, b)
    scores = ops.where(_readable(C, segment), scores, 0.0)
    if segment is None:
        old = readers @ S
        S = decay * S
    else:
        old, S = _old(readers, ops.concatenate([a, r], axis=-2), w, decay, S, segment, first)
        writers = ops.where(ops.tile(ops.equal(segment, segment[:, -1:]), (1, 2))[..., None], writers, 0.0)
    p = old[:, :C] + scores[:, :C, C:] @ v
    written = ops.concatenate([_inverse(scores[:, :C, :C]) @ p, v], axis=-2)
    y = old[:, C:] + scores[:, C:] @ written
    return S + transposed(writers) @ written, y


def _exchanged_bounded(r, w, k, a, b):
    """The scores between the readers a, r and the writers b, k of a chunk, (G, 2C, 2C), right where a writer stands
    before its reader; the readers decayed from the chunk's beginning and the writers to its end, (G, 2C, N); and the
    whole decay (G, N, 1).

    Decays between two tokens are e^(sum up to one - sum up to the other), the sums counted from the middle of the
    chunk: for |w| < 0.61 neither factor exceeds e^20 in a chunk of 64.
    """
    C = r.shape[-2]
    log_decay = ops.cast(ops.cumsum(w, axis=-2), w.dtype)
    middle, end = log_decay[:, C // 2 : C // 2 + 1], log_decay[:, -1:]
    readers = ops.concatenate([a * ops.exp(log_decay - w - middle), r * ops.exp(log_decay - middle)], axis=-2)
    fade = ops.exp(middle - log_decay)
    writers = ops.concatenate([b * fade, k * fade], axis=-2)
    scores = readers @ transposed(writers)
    return scores, readers * ops.exp(middle), writers * ops.exp(end - middle), transposed(ops.exp(end))


def _exchanged(r, w, k, a, b):
    """What `_exchanged_bounded` gives, for every decay: r reads the state that its own token leaves, so it decays once
    more than a, and sees what its token writes.
    """
    C, N = r.shape[-2:]
    writers = ops.stack([b, k], axis=2)
    own = ops.sum(r[:, :, None] * writers, axis=-1)
    own = ops.stack([ops.zeros_like(own), own], axis=2)
    scores, *sides, decay = exchanged(ops.stack([a, r * ops.exp(w)], axis=2), writers, own, w)
    scores = ops.transpose(ops.reshape(scores, (-1, C, 2, C, 2)), (0, 2, 1, 4, 3))
    readers, writers = (
        ops.reshape(ops.transpose(ops.reshape(x, (-1, C, 2, N)), (0, 2, 1, 3)), (-1, 2 * C, N)) for x in sides
    )
    return ops.reshape(scores, (-1, 2 * C, 2 * C)), readers, writers, decay[..., None]


def _readable(C, segment):
    """(2C, 2C), or (G, 2C, 2C) with segments: a reads b and k of earlier tokens, r also of its own; all of one
    document.
    """
    earlier, up_to = np.tri(C, k=-1, dtype=bool), np.tri(C, dtype=bool)
    order = np.block([[earlier, earlier], [up_to, up_to]])
    if segment is None:
        return order
    twice = ops.tile(segment, (1, 2))
    return ops.logical_and(order, ops.equal(twice[:, :, None], twice[:, None, :]))


def _old(readers, undecayed, w, decay, S, segment, first):
    """What a and r of each token read of the state their document brought into the chunk, and what of it is left.

    readers (G, 2C, N): a and r decayed since the chunk's beginning. decay (G, N, 1): of the whole chunk. Returns
    (G, 2C, N) and (G, N, N).
    """
    C = segment.shape[-1]
    brought = ops.equal(segment, 0)
    ended = brought[:, -1:, None]
    old = ops.where(ops.tile(brought, (1, 2))[..., None], readers, 0.0) @ S
    left = ops.where(ended, decay * S, 0.0)
    if first is not None:
        same = ops.equal(segment[:, :, None], segment[:, None, :])
        since = ops.cast(ops.logical_and(same, np.tri(C, k=-1, dtype=bool)), w.dtype) @ w
        since = ops.exp(ops.concatenate([since, since + w], axis=-2))
        begun = ops.where(ops.tile(brought, (1, 2))[..., None], 0.0, undecayed * since)
        old = old + begun @ first
        left = left + ops.where(ended, 0.0, transposed(since[:, -1:]) * first)
    return old, left


def _inverse(lower):
    """(I - lower)^-1 for strictly lower triangles (G, C, C), C a power of two.

    Inverses of the blocks of m on the diagonal give those of 2m: [X, 0; Y L X, Y] for neighbours X and Y with L between
    them. A power series in `lower` would lose all digits where tokens share one key.
    """
    C = lower.shape[-1]
    at = np.arange(C)
    inverse, m = ops.eye(C, dtype=lower.dtype), 1
    while m < C:
        pair, block = at // (2 * m), at // m
        between = (pair[:, None] == pair) & (block[:, None] > block)
        step = ops.where(between, lower, 0.0)
        inverse = inverse + (step if m == 1 else inverse @ (step @ inverse))
        m *= 2
    return inverse


def _prepare(xs, state, present):
    """Everything in the dtype of the recurrence; a masked token (`present` False) neither writes nor decays."""
    dtype = backend.accumulation_dtype(xs[0].dtype)
    r, w, k, v, a, b, state = (ops.cast(x, dtype) for x in (*xs, state))
    if present is not None:
        keep = ops.cast(present, "bool")[..., None, None]
        w, k, b = (ops.where(keep, x, 0.0) for x in (w, k, b))  # log decay 0 keeps the state
    return (r, w, k, v, a, b), state


def wkv7(r, w, k, v, a, b, state, present=None, reset=None, start=None, kernel="auto", bounded=False):
    """The RWKV-7 recurrence over T tokens, in the form that `kernel` chooses (see `ops.kernels.choose`).

    r, w, k, v, a, b: (B, T, H, N); w is the *log* of the decay, at most 0; a = -kk and b = kk * rate for a kk of
    length 1 (or 0) and an in-context learning rate in [0, 1]. state: (B, H, N, N) [key, value].
    bounded: a promise that no w is below -0.61, which a model's never is: with it chunks take 0.4 to 0.9 of the time.
    present: (B, T) bool; a token that is False leaves no trace (its y means nothing). reset: (B, T) bool; before such
    a token the state becomes `start` ((H, N, N), or with a leading 1 or B; None: zero).
    Returns y (B, T, H, N) and the state after the last token, both float32 (float64 when r is float64).
    """
    xs, *others = SHAPES.fitted((r, w, k, v, a, b), state, present, reset, start)
    fastest = partial(wkv7_fastest, bounded=bounded)
    forms = {"loop": wkv7_loop, "ops": wkv7_step if r.shape[1] == 1 else fastest}
    form = chosen(kernel, r.dtype, r.shape, backend.device_of(r))
    if 0 in r.shape[:2]:
        return without_tokens(r, others[0])
    if form == "native":
        return native("wkv7", xs, *others)
    return forms[form](*xs, *others)
