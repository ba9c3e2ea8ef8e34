"""The RWKV-4 recurrence in NumPy float64, one token and channel at a time: the truth for every form."""

import numpy as np


def wkv4(k, v, w, u, state, present=None, reset=None, start=None):
    """Arguments as `bert4keras_rwkv.ops.wkv4.wkv4`. Returns y, with zeros at masked tokens, and the last state."""
    k, v, w, u, state = (np.asarray(x, "float64") for x in (k, v, w, u, state))
    start = np.zeros(state.shape[1:]) if start is None else np.asarray(start, "float64")
    state, y = state.copy(), np.zeros(k.shape)
    for b, t in np.ndindex(k.shape[:2]):
        if present is not None and not present[b, t]:
            continue
        S = start if reset is not None and reset[b, t] else state[b]
        numerator, denominator = S[:2]
        maximum = np.where((numerator == 0) & (denominator == 0), -1e30, S[2])
        y[b, t] = np.divide(*added(numerator, denominator, maximum, u + k[b, t], v[b, t])[:2])
        state[b] = added(numerator, denominator, maximum + w, k[b, t], v[b, t])
    return y, state


def added(numerator, denominator, maximum, key, value):
    """A state with one more token, scaled by the larger exponent."""
    top = np.maximum(maximum, key)
    old, new = np.exp(maximum - top), np.exp(key - top)
    return np.stack([old * numerator + new * value, old * denominator + new, top])


def wkv4_gradients(dy, dstate, *args, step=1e-5, **options):
    """The gradients of sum(y * dy) + sum(last state * dstate) for k, v, w, u, state (and start): central differences.

    Slow: for a few tokens and channels.
    """
    names = ["k", "v", "w", "u", "state", *(["start"] if options.get("start") is not None else [])]
    arrays = dict(zip(names, (*args, options.pop("start", None)), strict=False))
    arrays = {name: np.array(array, "float64") for name, array in arrays.items()}

    def value():
        y, state = wkv4(**arrays, **options)
        return np.sum(y * dy) + np.sum(state * dstate)

    def slope(array, index):
        middle = array[index]
        ends = []
        for side in (1, -1):
            array[index] = middle + side * step
            ends.append(value())
        array[index] = middle
        return (ends[0] - ends[1]) / (2 * step)

    gradients = []
    for array in arrays.values():
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            gradient[index] = slope(array, index)
        gradients.append(gradient)
    return gradients
