"""The RWKV-6 recurrence and its gradient in NumPy float64, one token at a time: the truth for every form."""

import numpy as np


def wkv6(r, w, k, v, u, state, present=None, reset=None, start=None):
    """Arguments as `bert4keras_rwkv.ops.wkv6.wkv6`. Returns y, with zeros at masked tokens, and the last state."""
    y, state, _ = _forward(r, w, k, v, u, state, present, reset, start)
    return y, state


def wkv6_gradients(dy, dstate, r, w, k, v, u, state, present=None, reset=None, start=None):
    """The gradients of sum(y * dy) + sum(last state * dstate) for r, w, k, v, u, state and start (zero if None)."""
    r, w, k, v, u, state = (np.asarray(x, "float64") for x in (r, w, k, v, u, state))
    _, _, before = _forward(r, w, k, v, u, state, present, reset, start)
    dr, dw, dk, dv, du, dS = *(np.zeros_like(x) for x in (r, w, k, v, u)), np.array(dstate, "float64")
    dstart = np.zeros(state.shape[1:])
    for b in range(r.shape[0]):
        for t in reversed(range(r.shape[1])):
            if present is not None and not present[b, t]:
                continue
            S, decay, g = before[b, t], np.exp(w[b, t]), np.asarray(dy[b, t], "float64")
            vg = np.sum(v[b, t] * g, -1, keepdims=True)
            dr[b, t] = np.einsum("hkv,hv->hk", S, g) + u * k[b, t] * vg
            dk[b, t] = np.einsum("hkv,hv->hk", dS[b], v[b, t]) + u * r[b, t] * vg
            dv[b, t] = np.einsum("hkv,hk->hv", dS[b], k[b, t]) + g * np.sum(r[b, t] * u * k[b, t], -1, keepdims=True)
            du += r[b, t] * k[b, t] * vg
            dw[b, t] = decay * np.sum(dS[b] * S, -1)
            dS[b] = decay[..., None] * dS[b] + r[b, t][..., None] * g[:, None, :]
            if reset is not None and reset[b, t]:
                dstart += dS[b]
                dS[b] = 0
    return dr, dw, dk, dv, du, dS, dstart


def _forward(r, w, k, v, u, state, present, reset, start):
    """y, the last state, and the state before each token."""
    r, w, k, v, u, state = (np.asarray(x, "float64") for x in (r, w, k, v, u, state))
    state, y, before = state.copy(), np.zeros(r.shape), np.zeros((*r.shape, r.shape[-1]))
    for b, t in np.ndindex(r.shape[:2]):
        if present is not None and not present[b, t]:
            continue
        if reset is not None and reset[b, t]:
            state[b] = 0 if start is None else start
        before[b, t] = state[b]
        written = k[b, t][:, :, None] * v[b, t][:, None, :]
        y[b, t] = np.einsum("hk,hkv->hv", r[b, t], state[b] + u[:, :, None] * written)
        state[b] = np.exp(w[b, t])[:, :, None] * state[b] + written
    return y, state, before
