"""The RWKV-5 recurrence (Eagle and Finch, arXiv 2404.05892, section 4.1): RWKV-6's with a constant decay."""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops.shapes import Shapes
from bert4keras_rwkv.ops.wkv6 import wkv6


def wkv5(r, w, k, v, u, state, present=None, reset=None, start=None, kernel="auto"):
    """`ops.wkv6.wkv6` whose decay is the same for every token.

    w and u: (H,), one number a head, or (H, N); w is the *log* of the decay, <= 0. The rest, r, k, v (B, T, H, N) and
    state (B, H, N, N) among it, and what is returned are as there.
    """
    words = {name: "HN"[: max(len(x.shape), 1)] for name, x in (("w", w), ("u", u))}
    shapes = Shapes("wkv5", {**dict.fromkeys("rkv", "BTHN"), **words}, "HNN")
    (r, k, v, w, u), *others = shapes.fitted((r, k, v, w, u), state, present, reset, start)
    w, u = (ops.expand_dims(x, -1) if len(x.shape) == 1 else x for x in (w, u))
    w, u = ops.broadcast_to(w, ops.shape(k)), ops.broadcast_to(u, k.shape[2:])
    return wkv6(r, w, k, v, u, *others, kernel)
