"""RWKV-7 in NumPy float64, from official names, token by token: written from the paper, apart from the package."""

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
    blocks = [
        {name.removeprefix(f"blocks.{i}."): a for name, a in p.items() if name.startswith(f"blocks.{i}.")}
        for i in range(layers)
    ]
    state, logits = {}, []
    for token in tokens:
        x, first = layer_norm(p["emb.weight"][token], blocks[0]["ln0.weight"], blocks[0]["ln0.bias"]), None
        for i, b in enumerate(blocks):
            dx, first = time_mix(b, layer_norm(x, b["ln1.weight"], b["ln1.bias"]), state, i, first, epsilon)
            x = x + dx
            x = x + channel_mix(b, layer_norm(x, b["ln2.weight"], b["ln2.bias"]), state, i)
        logits.append(p["head.weight"] @ layer_norm(x, p["ln_out.weight"], p["ln_out.bias"]))
    return np.stack(logits), state


def time_mix(b, x, state, i, first, epsilon):
    """`first` is the first layer's value of this token, None in it. The state's wkv is [key, value]."""
    p = {name.removeprefix("att."): a.ravel() if a.ndim == 3 else a for name, a in b.items() if "att." in name}
    H, N = p["r_k"].shape
    change = state.get(f"{i}.time.x", np.zeros_like(x)) - x
    state[f"{i}.time.x"] = x
    mixed = {m: x + change * p[f"x_{m}"] for m in "rwkvag"}
    r, k, v = (p[f"{name}.weight"] @ mixed[name[0]] for name in ("receptance", "key", "value"))
    decay = np.exp(-np.exp(-0.5) * sigmoid(p["w0"] + np.tanh(mixed["w"] @ p["w1"]) @ p["w2"]))
    rate = sigmoid(p["a0"] + mixed["a"] @ p["a1"] @ p["a2"])
    gate = sigmoid(mixed["g"] @ p["g1"]) @ p["g2"]
    if first is None:
        first = v
    else:
        v = v + (first - v) * sigmoid(p["v0"] + mixed["v"] @ p["v1"] @ p["v2"])
    removed = (k * p["k_k"]).reshape(H, N)
    removed = removed / np.maximum(np.linalg.norm(removed, axis=-1, keepdims=True), 1e-12)
    k = k * (1 + (rate - 1) * p["k_a"])
    r, k, v_heads, decay, rate = (a.reshape(H, N) for a in (r, k, v, decay, rate))
    S = state.get(f"{i}.wkv", np.zeros((H, N, N)))
    known = np.einsum("hk,hkv->hv", removed, S)
    S = decay[:, :, None] * S - (removed * rate)[:, :, None] * known[:, None] + k[:, :, None] * v_heads[:, None]
    state[f"{i}.wkv"] = S
    y = layer_norm(np.einsum("hk,hkv->hv", r, S), 1, 0, epsilon).ravel() * p["ln_x.weight"] + p["ln_x.bias"]
    y = y + ((r * k * p["r_k"]).sum(-1, keepdims=True) * v_heads).ravel()
    return p["output.weight"] @ (y * gate), first


def channel_mix(b, x, state, i):
    change = state.get(f"{i}.channel.x", np.zeros_like(x)) - x
    state[f"{i}.channel.x"] = x
    return b["ffn.value.weight"] @ np.maximum(b["ffn.key.weight"] @ (x + change * b["ffn.x_k"].ravel()), 0) ** 2
