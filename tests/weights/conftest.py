"""A tiny RWKV-6 as the tests of this part need it: arrays under official names, and files of them."""

import numpy as np
import pytest


@pytest.fixture
def official(rng):
    """Official name -> float32 array of an RWKV-6: 2 layers, 2 heads of 4, 16 ids, ranks 3 and 5, in released order."""
    C, F, V, D, Dd = 8, 24, 16, 3, 5
    vector, square = (1, 1, C), (C, C)

    def norm(name):
        return {f"{name}.weight": (C,), f"{name}.bias": (C,)}

    shapes = {"emb.weight": (V, C)}
    for i in range(2):
        shapes |= norm(f"blocks.{i}.ln1") | norm(f"blocks.{i}.ln2") | (norm("blocks.0.ln0") if i == 0 else {})
        time = {f"time_maa_{m}": vector for m in "xwkvrg"} | {"time_maa_w1": (C, 5 * D), "time_maa_w2": (5, D, C)}
        time |= {"time_decay": vector, "time_decay_w1": (C, Dd), "time_decay_w2": (Dd, C), "time_faaaa": (2, 4)}
        time |= {f"{name}.weight": square for name in ("receptance", "key", "value", "output", "gate")}
        shapes |= {f"blocks.{i}.att.{name}": shape for name, shape in time.items()} | norm(f"blocks.{i}.att.ln_x")
        channel = {"time_maa_k": vector, "time_maa_r": vector, "key.weight": (F, C), "receptance.weight": square}
        channel |= {"value.weight": (C, F)}
        shapes |= {f"blocks.{i}.ffn.{name}": shape for name, shape in channel.items()}
    shapes |= norm("ln_out") | {"head.weight": (V, C)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def same():
    """A check that two mappings hold the same names, in the same order, with equal arrays of equal dtype."""

    def check(found, expected):
        assert list(found) == list(expected)
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name])

    return check
