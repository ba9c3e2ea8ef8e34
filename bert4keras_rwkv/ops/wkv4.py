"""The RWKV-4 recurrence (RWKV: Reinventing RNNs for the Transformer Era, arXiv 2305.13048, section 3 and appendix D).

    y_t = (a_{t-1} + e^{u + k_t} v_t) / (b_{t-1} + e^{u + k_t})
    a_t = e^w a_{t-1} + e^{k_t} v_t        b_t = e^w b_{t-1} + e^{k_t}

Each channel stands alone. What is kept is a e^{-p} and b e^{-p}, p the running maximum of the exponents in them, so
that no exponential overflows. Float32 inside (float64 when k is float64).
"""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.chunks import real_resets, without_tokens
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.ops.kernels.native import native
from bert4keras_rwkv.ops.scan import scan
from bert4keras_rwkv.ops.shapes import Shapes

MOST = 1e29  # keys and bonuses beyond are as good as this; two of them together stay clear of an empty state's -1e30
STEEPEST = 60.0  # a gradient of an empty state is scaled by e^60 at most
SMALLEST = 1e-30  # a denominator that has seen a token is about 1 at least
SHAPES = Shapes("wkv4", {"k": "BTD", "v": "BTD", "w": "D", "u": "D"}, "3D")


def wkv4_loop(k, v, w, u, state, present=None, reset=None, start=None):
    """`wkv4` one token at a time, as the equation reads."""
    k, v, w, u, state = prepare(k, v, w, u, state)
    begin = _parts(ops.zeros_like(state) if start is None else ops.cast(start, state.dtype))
    masks = {"present": None if present is None else ops.cast(present, "bool")}
    masks["reset"] = None if reset is None else real_resets(reset, present)
    masks = {name: mask for name, mask in masks.items() if mask is not None}

    def step(S, x):
        k, v, *given = x
        given = dict(zip(masks, given, strict=True))
        if "reset" in given:
            S = _choose(given["reset"], _initial_state(begin, k, u, given["reset"]), S)
        y, new = _read(k, v, u, S), _write(k, v, w, S)
        return _choose(given["present"], new, S) if "present" in given else new, y

    xs = tuple(ops.moveaxis(x, 1, 0) for x in (k, v, *(mask[..., None] for mask in masks.values())))
    S, y = scan(step, _initial_state(_parts(state), _first(k, present), u), xs)
    return ops.moveaxis(y, 0, 1), _last_state(S, state, present)


def wkv4_step(k, v, w, u, state, present=None, reset=None, start=None):
    """`wkv4` for T = 1: no loop."""
    k, v, w, u, state = prepare(k, v, w, u, state)
    k, v = k[:, 0], v[:, 0]
    S = _initial_state(_parts(state), k, u)
    if reset is not None:
        begin = _parts(ops.zeros_like(state) if start is None else ops.cast(start, state.dtype))
        begins = real_resets(reset, present)[:, :1]
        S = _choose(begins, _initial_state(begin, k, u, begins), S)
    return _read(k, v, u, S)[:, None], _last_state(_write(k, v, w, S), state, present)


def prepare(k, v, w, u, state):
    """Everything in the dtype of the recurrence, and nothing so large that a sum of two overflows."""
    dtype = backend.accumulation_dtype(k.dtype)
    k, v, w, u, state = (ops.cast(x, dtype) for x in (k, v, w, u, state))
    return _bounded(k), v, ops.where(w > -MOST, w, -MOST), _bounded(u), state


def _bounded(x):
    """x within MOST. NaN stays, and its gradient: that of `ops.clip` is 0 on PyTorch."""
    return ops.where(x > MOST, MOST, ops.where(x < -MOST, -MOST, x))


def _read(k, v, u, S):
    """What a token (B, D) gets from itself and the state S before it."""
    a, b, p = S
    old, new = _shares(p, u + k)
    denominator = old * b + new
    seen = denominator > SMALLEST
    return ops.where(seen, old * a + new * v, 0.0) / ops.where(seen, denominator, 1.0)


def _write(k, v, w, S):
    """The state after a token."""
    a, b, p = S
    p = p + w
    old, new = _shares(p, k)
    return old * a + new * v, old * b + new, ops.where(p >= k, p, k)


def _shares(p, q):
    """e^(p - m) and e^(q - m), m the larger of p and q: one of them is 1, and there is one exponential to compute."""
    ahead = p >= q
    less = ops.exp(ops.where(ahead, q - p, p - q))
    return ops.where(ahead, 1.0, less), ops.where(ahead, less, 1.0)


def _initial_state(S, k, u, begins=None):
    """A state that was handed in, before the token of key k. An empty one gets a maximum that never counts.

    Numerator and denominator 0 are an empty state whatever maximum comes with them. For them to be trainable the
    maximum must not be far below the keys: it is put just below the first, and the gradient is scaled back to the
    maximum that was handed in. begins: (B, 1) bool, which rows will have the result; in others a key or a bonus that is
    NaN must not get into the gradient. None: all.
    """
    a, b, p = S
    empty = ops.logical_and(ops.equal(a, 0), ops.equal(b, 0))
    below = ops.stop_gradient(k + ops.minimum(u, 0.0)) - 1.0
    below = below if begins is None else ops.where(begins, below, 0.0)
    scale = ops.exp(ops.where(empty, ops.minimum(p - below, STEEPEST), 0.0))
    return scale * a, scale * b, ops.where(empty, below, p)


def _first(k, present):
    """The key (B, D) of each row's first real token."""
    if present is None:
        return k[:, 0]
    at = ops.argmax(ops.cast(present, "int32"), axis=1)
    return ops.take_along_axis(k, at[:, None, None], axis=1)[:, 0]


def _last_state(S, state, present):
    """The last state as (B, 3, D); for a row without a real token the very one that came in."""
    last = ops.stack(S, axis=1)
    if present is None:
        return last
    return ops.where(ops.any(ops.cast(present, "bool"), axis=1)[:, None, None], last, state)


def _parts(state):
    """(..., 3, D) -> numerator, denominator and maximum, (..., D) each."""
    return state[..., 0, :], state[..., 1, :], state[..., 2, :]


def _choose(mask, S, other):
    """S where the mask (B, 1) is true, else the other."""
    return tuple(ops.where(mask, x, y) for x, y in zip(S, other, strict=True))


def wkv4(k, v, w, u, state, present=None, reset=None, start=None, kernel="auto"):
    """The RWKV-4 recurrence over T tokens, in the form that `kernel` chooses (see `ops.kernels.choose`).

    k, v: (B, T, D). w, u: (D,); w is the *log* of the decay, <= 0. state: (B, 3, D), numerator, denominator and
    running maximum; with numerator = denominator = 0 it is empty, whatever its maximum. present: (B, T) bool; a token
    that is False leaves no trace (its y means nothing). reset: (B, T) bool; before such a token the state becomes
    `start` ((3, D), or with a leading 1 or B; None: empty).
    Returns y (B, T, D) and the state after the last token, both float32 (float64 when k is float64).
    """
    xs, *others = SHAPES.fitted((k, v, w, u), state, present, reset, start)
    forms = {"loop": wkv4_loop, "ops": wkv4_step if k.shape[1] == 1 else wkv4_loop}
    form = chosen(kernel, k.dtype, k.shape, backend.device_of(k))
    if 0 in k.shape[:2]:
        return without_tokens(k, others[0])
    if form == "native":
        return native("wkv4", xs, *others)
    return forms[form](*xs, *others)
