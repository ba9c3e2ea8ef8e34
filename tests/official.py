"""Random weights of every version under official names, as files have them: made apart from the package.

Names, shapes and order are those of released files. `VERSIONS` are what files can be.
"""

VERSIONS = ("4", "5.0", "5.0 time_first", "5.1", "5.2", "6", "7")


def official_weights(version, rng, layers=2, heads=2, head_size=8, ids=32, ffn=24, ranks=(3, 5, 4, 2), dtype="float32"):
    """Official name -> array. ranks: of `time_maa_w1` and the decay (6), of w, a, v and g (7)."""
    shapes = official_shapes(version, layers, heads, head_size, ids, ffn, ranks)
    return {name: _values(name, shape, rng).astype(dtype) for name, shape in shapes.items()}


def official_shapes(version, layers, heads, head_size, ids, ffn, ranks=()):
    """Official name -> shape, of any size."""
    C = heads * head_size
    shapes = {"emb.weight": (ids, C)}
    for i in range(layers):
        shapes |= _norm(f"blocks.{i}.ln1", C) | _norm(f"blocks.{i}.ln2", C)
        if i == 0:
            shapes |= _norm("blocks.0.ln0", C)
        time, channel = _mixers(version, i, C, heads, head_size, ffn, ranks)
        shapes |= {f"blocks.{i}.att.{name}": shape for name, shape in time.items()}
        shapes |= {f"blocks.{i}.ffn.{name}": shape for name, shape in channel.items()}
    return shapes | _norm("ln_out", C) | {"head.weight": (ids, C)}


def _values(name, shape, rng):
    """Numbers of a size that keeps activations near 1."""
    if len(shape) == 2 and name.endswith(".weight"):
        return rng.normal(0, 1.2 / shape[1] ** 0.5, shape)
    centre = 1 if "ln" in name and name.endswith(".weight") else 0
    return rng.normal(centre, 0.4, shape)


def _norm(name, C):
    return {f"{name}.weight": (C,), f"{name}.bias": (C,)}


def _mixers(version, i, C, H, N, F, ranks):
    """The shapes of the two mixers of block i."""
    vector, square = (1, 1, C), (C, C)
    ffn = {"key.weight": (F, C), "receptance.weight": square, "value.weight": (C, F)}
    projections = {f"{name}.weight": square for name in ("key", "value", "receptance", "output")}
    if version == "4":
        time = {"time_decay": (C,), "time_first": (C,)} | {f"time_mix_{m}": vector for m in "kvr"} | projections
        return time, {"time_mix_k": vector, "time_mix_r": vector} | ffn
    if version.startswith("5"):
        rows = (H, N) if version == "5.2" else (H,)
        gated = version in ("5.1", "5.2")
        time = {f"time_mix_{m}": vector for m in ("kvrg" if gated else "kvr")} | {"time_decay": rows}
        time |= {"time_first" if version.endswith("time_first") else "time_faaaa": rows}
        time |= {f"{name}.weight": square for name in ("receptance", "key", "value", "output")}
        time |= {"gate.weight": square} if gated else {}
        return time | _norm("ln_x", C), {"time_mix_k": vector, "time_mix_r": vector} | ffn
    if version == "6":
        D, Dd = ranks[:2]
        time = {f"time_maa_{m}": vector for m in "xwkvrg"} | {"time_maa_w1": (C, 5 * D), "time_maa_w2": (5, D, C)}
        time |= {"time_decay": vector, "time_decay_w1": (C, Dd), "time_decay_w2": (Dd, C), "time_faaaa": (H, N)}
        time |= {f"{name}.weight": square for name in ("receptance", "key", "value", "output", "gate")}
        return time | _norm("ln_x", C), {"time_maa_k": vector, "time_maa_r": vector} | ffn
    w, a, v, g = ranks
    time = {f"x_{m}": vector for m in "rwkvag"}
    time |= {"w0": vector, "r_k": (H, N), "w1": (C, w), "w2": (w, C), "a1": (C, a), "a2": (a, C), "a0": vector}
    time |= {"g1": (C, g), "g2": (g, C)} | ({"v2": (v, C), "v1": (C, v), "v0": vector} if i else {})
    time |= {"k_k": vector, "k_a": vector}
    time |= {f"{name}.weight": square for name in ("receptance", "key", "value", "output")} | _norm("ln_x", C)
    return time, {"x_k": vector, "key.weight": (F, C), "value.weight": (C, F)}
