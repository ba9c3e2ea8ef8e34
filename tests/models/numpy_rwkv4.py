"""RWKV-4 in NumPy float64, from official names, token by token: written from the paper, apart from the package."""

import numpy as np

from tests.models.numpy_rwkv6 import layer_norm, sigmoid


def forward(weights, tokens, epsilon=None):
    """weights: official name -> array. tokens: ids of one text. Returns logits (T, V) and the state {name: array}."""
    return run(weights, tokens, time_mix, channel_mix)


def run(weights, tokens, time, channel):
    """What is around the mixers, for RWKV-5 too."""
    p = {name: np.asarray(array, "float64") for name, array in weights.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    state, logits = {}, []
    for token in tokens:
        x = layer_norm(p["emb.weight"][token], p["blocks.0.ln0.weight"], p["blocks.0.ln0.bias"])
        for i in range(layers):
            b = {name.removeprefix(f"blocks.{i}."): a for name, a in p.items() if name.startswith(f"blocks.{i}.")}
            x = x + time(b, layer_norm(x, b["ln1.weight"], b["ln1.bias"]), state, i)
            x = x + channel(b, layer_norm(x, b["ln2.weight"], b["ln2.bias"]), state, i)
        logits.append(p["head.weight"] @ layer_norm(x, p["ln_out.weight"], p["ln_out.bias"]))
    return np.stack(logits), state


def mixed(x, previous, mix):
    return x * mix.ravel() + previous * (1 - mix.ravel())


def time_mix(b, x, state, i):
    """The state's sums divided by e^maximum, as they are stored."""
    previous = state.get(f"{i}.time.x", np.zeros_like(x))
    state[f"{i}.time.x"] = x
    r, k, v = (
        b[f"att.{name}.weight"] @ mixed(x, previous, b[f"att.time_mix_{name[0]}"])
        for name in ("receptance", "key", "value")
    )
    numerator, denominator, maximum = state.get(f"{i}.wkv", np.stack([0 * x, 0 * x, np.full_like(x, -1e30)]))
    top = np.maximum(maximum, b["att.time_first"] + k)
    before, now = np.exp(maximum - top), np.exp(b["att.time_first"] + k - top)
    y = (before * numerator + now * v) / (before * denominator + now)
    maximum = maximum - np.exp(b["att.time_decay"])
    top = np.maximum(maximum, k)
    before, now = np.exp(maximum - top), np.exp(k - top)
    state[f"{i}.wkv"] = np.stack([before * numerator + now * v, before * denominator + now, top])
    return b["att.output.weight"] @ (sigmoid(r) * y)


def channel_mix(b, x, state, i):
    previous = state.get(f"{i}.channel.x", np.zeros_like(x))
    state[f"{i}.channel.x"] = x
    k = np.maximum(b["ffn.key.weight"] @ mixed(x, previous, b["ffn.time_mix_k"]), 0) ** 2
    r = b["ffn.receptance.weight"] @ mixed(x, previous, b["ffn.time_mix_r"])
    return sigmoid(r) * (b["ffn.value.weight"] @ k)
