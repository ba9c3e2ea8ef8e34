"""The RWKV-7 recurrence and its gradient in NumPy float64, one token at a time: the truth for every form."""

import numpy as np


def wkv7(r, w, k, v, a, b, state, present=None, reset=None, start=None):
    """Arguments as `bert4keras_rwkv.ops.wkv7.wkv7`. Returns y, with zeros at masked tokens, and the last state."""
    y, state, _ = _forward(r, w, k, v, a, b, state, present, reset, start)
    return y, state


def wkv7_gradients(dy, dstate, r, w, k, v, a, b, state, present=None, reset=None, start=None):
    """The gradients of sum(y * dy) + sum(last state * dstate) for r, w, k, v, a, b, state and start."""
    r, w, k, v, a, b, state = (np.asarray(x, "float64") for x in (r, w, k, v, a, b, state))
    _, _, before = _forward(r, w, k, v, a, b, state, present, reset, start)
    dr, dw, dk, dv, da, db = (np.zeros_like(x) for x in (r, w, k, v, a, b))
    dS, dstart = np.array(dstate, "float64"), np.zeros(state.shape[1:])
    for i in range(r.shape[0]):
        for t in reversed(range(r.shape[1])):
            if present is not None and not present[i, t]:
                continue
            S, at = before[i, t], (i, t)
            read, after = _after(S, w[at], k[at], v[at], a[at], b[at])
            dr[at] = np.einsum("hkv,hv->hk", after, dy[at])
            dS[i] += r[at][..., None] * dy[at][:, None, :]
            dk[at] = np.einsum("hkv,hv->hk", dS[i], v[at])
            dv[at] = np.einsum("hkv,hk->hv", dS[i], k[at])
            db[at] = np.einsum("hkv,hv->hk", dS[i], read)
            dread = np.einsum("hkv,hk->hv", dS[i], b[at])
            da[at] = np.einsum("hkv,hv->hk", S, dread)
            dw[at] = np.exp(w[at]) * np.sum(dS[i] * S, -1)
            dS[i] = np.exp(w[at])[..., None] * dS[i] + a[at][..., None] * dread[:, None, :]
            if reset is not None and reset[at]:
                dstart += dS[i]
                dS[i] = 0
    return dr, dw, dk, dv, da, db, dS, dstart


def _after(S, w, k, v, a, b):
    """What a reads of the state of one row, (H, N), and the state after the token."""
    read = np.einsum("hk,hkv->hv", a, S)
    return read, np.exp(w)[..., None] * S + b[..., None] * read[:, None, :] + k[..., None] * v[:, None, :]


def _forward(r, w, k, v, a, b, state, present, reset, start):
    """y, the last state, and the state before each token."""
    r, w, k, v, a, b, state = (np.asarray(x, "float64") for x in (r, w, k, v, a, b, state))
    state, y, before = state.copy(), np.zeros(r.shape), np.zeros((*r.shape, r.shape[-1]))
    for at in np.ndindex(r.shape[:2]):
        if present is not None and not present[at]:
            continue
        i = at[0]
        if reset is not None and reset[at]:
            state[i] = 0 if start is None else start
        before[at] = state[i]
        _, state[i] = _after(state[i], w[at], k[at], v[at], a[at], b[at])
        y[at] = np.einsum("hk,hkv->hv", r[at], state[i])
    return y, state, before
