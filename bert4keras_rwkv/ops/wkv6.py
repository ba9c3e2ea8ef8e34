"""The RWKV-6 recurrence (Eagle and Finch, arXiv 2404.05892, section 4.2).

    y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)        S_t = diag(e^{w_t}) S_{t-1} + k_t^T v_t

The plain loop is the truth; the chunked form is what runs. Both are float32 inside (float64 when r is float64).
"""

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
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.ops.kernels.native import native
from bert4keras_rwkv.ops.shapes import Shapes

CHUNK = 32  # fastest of 8..128 for forward and for forward with gradient on a CPU
SHAPES = Shapes("wkv6", {**dict.fromkeys("rwkv", "BTHN"), "u": "HN"}, "HNN")


def wkv6_loop(r, w, k, v, u, state, present=None, reset=None, start=None):
    """`wkv6` one token at a time, as the equation reads. Slow; the reference for every other form."""
    r, w, k, v, u, state = prepare(r, w, k, v, u, state, present)
    return each_token(_token(u), (r, w, k, v), state, real_resets(reset, present), start)


def wkv6_step(r, w, k, v, u, state, present=None, reset=None, start=None):
    """`wkv6` for T = 1: one pass over the state, no loop."""
    r, w, k, v, u, state = prepare(r, w, k, v, u, state, present)
    return one_token(_token(u), (r, w, k, v), state, real_resets(reset, present), start)


def wkv6_chunked(r, w, k, v, u, state, present=None, reset=None, start=None, chunk=CHUNK):
    """`wkv6` by chunks of `chunk` tokens (a power of two): matrix products inside a chunk, a loop over chunks.

    Accurate for every decay, see `ops.chunks.exchanged`.
    """
    r, w, k, v, u, state = prepare(r, w, k, v, u, state, present)
    B, _, H, N = ops.shape(r)
    u = ops.reshape(ops.broadcast_to(u[None], (B, H, N)), (-1, 1, N))

    def form(r, w, k, v, S, *segments):
        if segments:
            return _chunk_with_resets(r, w, k, v, u, S, *segments)
        scores, r, k, decay = _scores(r, w, k, u)
        y = scores @ v + r @ S
        return decay[..., None] * S + transposed(k) @ v, y

    return each_chunk(form, (r, w, k, v), state, chunk, real_resets(reset, present), start)


def _scores(r, w, k, u):
    """`exchanged` for r, w, k (G, C, N), u (G, 1, N): on the diagonal of the scores stands r_t . u k_t."""
    own = ops.sum(r * u * k, axis=-1)[..., None, None]
    return exchanged(r[:, :, None], k[:, :, None], own, w)


def _chunk_with_resets(r, w, k, v, u, S, segment, start):
    """One chunk in which documents begin. segment (G, C): how many have begun in this chunk up to each token."""
    same = ops.equal(segment[:, :, None], segment[:, None, :])
    scores, r_old, k_end, decay = _scores(r, w, k, u)
    old = ops.equal(segment, 0)[..., None]
    last = segment[:, -1:]
    y = ops.where(same, scores, 0.0) @ v + ops.where(old, r_old, 0.0) @ S
    ended = ops.equal(last, 0)
    new = transposed(ops.where(ops.equal(segment, last)[..., None], k_end, 0.0)) @ v
    new = new + ops.where(ended, decay, 0.0)[..., None] * S
    if start is not None:
        C = segment.shape[-1]
        before = ops.logical_and(same, ops.tril(ops.ones((C, C), "bool"), -1))
        since = ops.cast(before, w.dtype) @ w  # log decay since the document's first token
        y = y + ops.where(old, 0.0, r * ops.exp(since)) @ start
        whole = ops.exp(since[:, -1] + w[:, -1])
        new = new + ops.where(ended, 0.0, whole)[..., None] * start
    return new, y


def _token(u):
    """The function of one token: r, w, k, v (B, H, N), S (B, H, N, N) -> y (B, H, N), S."""

    def token(r, w, k, v, S):
        y = (r[..., None, :] @ S)[..., 0, :] + ops.sum(r * u * k, axis=-1, keepdims=True) * v
        return y, ops.exp(w)[..., None] * S + k[..., :, None] * v[..., None, :]

    return token


def prepare(r, w, k, v, u, state, present):
    """Everything in the dtype of the recurrence; a masked token (`present` False) neither writes nor decays."""
    dtype = backend.accumulation_dtype(r.dtype)
    r, w, k, v, u, state = (ops.cast(x, dtype) for x in (r, w, k, v, u, state))
    if present is not None:
        keep = ops.cast(present, "bool")[..., None, None]
        w, k = ops.where(keep, w, 0.0), ops.where(keep, k, 0.0)  # log decay 0 keeps the state
    return r, w, k, v, u, state


def wkv6(r, w, k, v, u, state, present=None, reset=None, start=None, kernel="auto"):
    """The RWKV-6 recurrence over T tokens, in the form that `kernel` chooses (see `ops.kernels.choose`).

    r, w, k, v: (B, T, H, N); w is the *log* of the decay, <= 0. u: (H, N). state: (B, H, N, N) [key, value].
    present: (B, T) bool; a token that is False leaves no trace (its y means nothing). reset: (B, T) bool; before such
    a token the state becomes `start` ((H, N, N), or with a leading 1 or B; None: zero).
    Returns y (B, T, H, N) and the state after the last token, both float32 (float64 when r is float64).
    """
    xs, *others = SHAPES.fitted((r, w, k, v, u), state, present, reset, start)
    forms = {"loop": wkv6_loop, "ops": wkv6_step if r.shape[1] == 1 else wkv6_chunked}
    form = chosen(kernel, r.dtype, r.shape, backend.device_of(r))
    if 0 in r.shape[:2]:
        return without_tokens(r, others[0])
    if form == "native":
        return native("wkv6", xs, *others)
    return forms[form](*xs, *others)
