"""RWKV-5 in NumPy float64, from official names, token by token: written from the paper, apart from the package."""

import numpy as np

from tests.models.numpy_rwkv4 import channel_mix, mixed, run
from tests.models.numpy_rwkv6 import layer_norm, sigmoid


def forward(weights, tokens, epsilon=64e-5):
    """weights: official name -> array. tokens: ids of one text. Returns logits (T, V) and the state {name: array}."""

    def time(b, x, state, i):
        return time_mix(b, x, state, i, epsilon)

    return run(weights, tokens, time, channel_mix)


def time_mix(b, x, state, i, epsilon):
    """`time_decay` is [H] or [H, N]; the bonus is `time_faaaa`, or exp(`time_first`)."""
    H = len(b["att.time_decay"])
    decay = np.exp(-np.exp(b["att.time_decay"].reshape(H, -1, 1)))
    bonus = b["att.time_faaaa"] if "att.time_faaaa" in b else np.exp(b["att.time_first"])
    previous = state.get(f"{i}.time.x", np.zeros_like(x))
    state[f"{i}.time.x"] = x
    r, k, v = (
        (b[f"att.{name}.weight"] @ mixed(x, previous, b[f"att.time_mix_{name[0]}"])).reshape(H, -1)
        for name in ("receptance", "key", "value")
    )
    S = state.get(f"{i}.wkv", np.zeros((H, x.size // H, x.size // H)))
    written = k[:, :, None] * v[:, None, :]
    y = np.einsum("hk,hkv->hv", r, S + bonus.reshape(H, -1, 1) * written)
    state[f"{i}.wkv"] = decay * S + written
    y = layer_norm(y, 1, 0, epsilon).ravel() * b["att.ln_x.weight"] + b["att.ln_x.bias"]
    if "att.gate.weight" in b:
        g = b["att.gate.weight"] @ mixed(x, previous, b["att.time_mix_g"])
        y = y * g * sigmoid(g)
    return b["att.output.weight"] @ y
