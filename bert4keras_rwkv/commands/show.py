"""What `/show` shows: how tokens are drawn, and the state as a small picture. No Keras."""

import dataclasses

import numpy as np

BARS = "▁▂▃▄▅▆▇█"
ALWAYS = ("temperature", "top_p")


def counted(number, what):
    """'1 token', '2 tokens'."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def sampling_rows(sampling):
    """(field, value) of a `Sampling`; what is as usual is left out, but for the temperature and top_p."""
    return [
        (field.name, str(getattr(sampling, field.name)))
        for field in dataclasses.fields(sampling)
        if field.name in ALWAYS or getattr(sampling, field.name) != field.default
    ]


def state_rows(state):
    """(name, value) of an RWKVState of one row, or of None: its size, and how large it is in each layer."""
    if state is None:
        return [("state", "nothing was read")]
    state = state.numpy()
    norms = layer_norms(state.wkv[0])
    size = f"{(state.wkv.nbytes + state.shift.nbytes) / 1e6:.2f} MB"
    return [("state", f"{size}, {len(norms)} layers"), ("norm", f"{bars(norms)} {min(norms):.3g} to {max(norms):.3g}")]


def layer_norms(wkv):
    """The Euclidean norm of each layer's state, a list. wkv: (n, H, N, N), or (n, 3, D) of RWKV-4, of which it is that
    of numerator / denominator.
    """
    wkv = wkv.astype("float64")
    if wkv.ndim == 3:
        numerator, denominator = wkv[:, 0], wkv[:, 1]
        wkv = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
    return [float(np.linalg.norm(layer)) for layer in wkv]


def bars(values):
    """Numbers as a row of bars, the largest as the highest."""
    top = max(values)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] if top > 0 else BARS[0] for value in values)
