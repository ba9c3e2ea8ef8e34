"""RWKV-6 in NumPy float64, from official names, token by token: written from the paper, apart from the package."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, weight, bias, epsilon=1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight + bias


def forward(weights, tokens, epsilon=64e-5):
    """weights: official name -> array. tokens: ids of one text. Returns logits (T, V) and the state {name: array}."""
    p = {name: np.asarray(array, "float64") for name, array in weights.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    H, N = p["blocks.0.att.time_faaaa"].shape
    state, logits = {}, []
    for token in tokens:
        x = layer_norm(p["emb.weight"][token], p["blocks.0.ln0.weight"], p["blocks.0.ln0.bias"])
        for i in range(layers):
            b = {name.removeprefix(f"blocks.{i}."): a for name, a in p.items() if name.startswith(f"blocks.{i}.")}
            x = x + time_mix(b, layer_norm(x, b["ln1.weight"], b["ln1.bias"]), state, i, H, N, epsilon)
            x = x + channel_mix(b, layer_norm(x, b["ln2.weight"], b["ln2.bias"]), state, i)
        logits.append(p["head.weight"] @ layer_norm(x, p["ln_out.weight"], p["ln_out.bias"]))
    return np.stack(logits), state


def time_mix(b, x, state, i, H, N, epsilon):
    change = state.get(f"{i}.time.x", np.zeros_like(x)) - x
    state[f"{i}.time.x"] = x
    low = np.tanh((x + change * b["att.time_maa_x"].ravel()) @ b["att.time_maa_w1"]).reshape(5, -1)
    mixed = {
        name: x + change * (b[f"att.time_maa_{name}"].ravel() + low[j] @ b["att.time_maa_w2"][j])
        for j, name in enumerate("wkvrg")
    }
    r, k, v = ((b[f"att.{name}.weight"] @ mixed[name[0]]).reshape(H, N) for name in ("receptance", "key", "value"))
    decay = b["att.time_decay"].ravel() + np.tanh(mixed["w"] @ b["att.time_decay_w1"]) @ b["att.time_decay_w2"]
    S = state.get(f"{i}.wkv", np.zeros((H, N, N)))
    written = k[:, :, None] * v[:, None, :]
    y = np.einsum("hk,hkv->hv", r, S + b["att.time_faaaa"][:, :, None] * written)
    state[f"{i}.wkv"] = np.exp(-np.exp(decay)).reshape(H, N, 1) * S + written
    y = layer_norm(y, 1, 0, epsilon).ravel() * b["att.ln_x.weight"] + b["att.ln_x.bias"]
    g = b["att.gate.weight"] @ mixed["g"]
    return b["att.output.weight"] @ (y * g * sigmoid(g))


def channel_mix(b, x, state, i):
    change = state.get(f"{i}.channel.x", np.zeros_like(x)) - x
    state[f"{i}.channel.x"] = x
    k = np.maximum(b["ffn.key.weight"] @ (x + change * b["ffn.time_maa_k"].ravel()), 0) ** 2
    r = b["ffn.receptance.weight"] @ (x + change * b["ffn.time_maa_r"].ravel())
    return sigmoid(r) * (b["ffn.value.weight"] @ k)
