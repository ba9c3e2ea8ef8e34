"""The recurrences with a matrix-valued state and their gradients, one token at a time in float64, with NumPy alone.

Inputs are those of a kernel: (r, w, k, v, u) or (r, w, k, v, a, b), a state and a start (B, H, N, N), flags (B, T).
"""

import numpy as np

from bert4keras_rwkv.ops.kernels.native import ABSENT, RESET


def outer(x, y):
    return x[..., :, None] * y[..., None, :]


def rows(x, S):
    """x S."""
    return (x[..., None, :] @ S)[..., 0, :]


def columns(S, x):
    """S x."""
    return (S @ x[..., None])[..., 0]


def _bits(flags, t):
    return (flags[:, t] & ABSENT) == 0, ((flags[:, t] & RESET) > 0)[:, None, None, None]


def _tokens(xs, t, there):
    """The inputs of a token, those of an absent one as if it were not there; the decay, not its logarithm."""
    there = there[:, None, None]
    r, w, k, v = (x[:, t].astype("float64") for x in xs[:4])
    a, b = (x[:, t].astype("float64") for x in xs[4:]) if len(xs) == 6 else (0.0 * r, 0.0 * r)
    return r, np.exp(w * there), k * there, v, a, b * there


def forward(xs, state, start, flags):
    """y, the last state, and for each token what it found (before documents begin), the state it saw, what a read."""
    y, S = np.zeros(xs[0].shape), state.astype("float64")
    found, seen, reads = [], [], np.zeros(xs[0].shape)
    for t in range(xs[0].shape[1]):
        there, begins = _bits(flags, t)
        r, d, k, v, a, b = _tokens(xs, t, there)
        found.append(S)
        S = np.where(begins, start, S)
        seen.append(S)
        reads[:, t] = rows(a, S)
        if len(xs) == 5:
            y[:, t] = rows(r, S + outer(xs[4] * k, v))
        S = d[..., None] * S + outer(k, v) + outer(b, reads[:, t])
        if len(xs) == 6:
            y[:, t] = rows(r, S)
    return y, S, found, seen, reads


def gradient(xs, state, start, flags, dy, dlast):
    """The gradients of all xs, of the state and of start."""
    *_, seen, reads = forward(xs, state, start, flags)
    d_xs = [np.zeros(x.shape) for x in xs]
    G, d_start = dlast.astype("float64"), np.zeros(start.shape)
    for t in reversed(range(xs[0].shape[1])):
        there, begins = _bits(flags, t)
        r, d, k, v, a, b = _tokens(xs, t, there)
        S, slope, p = seen[t], dy[:, t].astype("float64"), reads[:, t]
        keep = there[:, None, None]
        if len(xs) == 6:
            left = d[..., None] * S + outer(k, v) + outer(b, p)
            G = G + outer(r, slope)
            dp = rows(b, G)
            d_xs[0][:, t] = columns(left, slope)
            d_xs[3][:, t] = rows(k, G)
            d_xs[4][:, t], d_xs[5][:, t] = columns(S, dp), columns(G, p) * keep
            more, of_k = outer(a, dp), 0.0
        else:
            u, own = xs[4].astype("float64"), np.sum(v * slope, -1, keepdims=True)
            d_xs[0][:, t] = columns(S, slope) + u * k * own
            d_xs[3][:, t] = rows(k, G) + np.sum(r * u * k, -1, keepdims=True) * slope
            d_xs[4] += r * k * own
            more, of_k = outer(r, slope), r * u * own
        d_xs[1][:, t] = np.sum(G * S, -1) * d * keep
        d_xs[2][:, t] = (columns(G, v) + of_k) * keep
        G = d[..., None] * G + more
        d_start += np.where(begins, G, 0.0)
        G = np.where(begins, 0.0, G)
    return [*d_xs, G, d_start]
