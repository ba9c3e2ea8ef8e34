"""Small models with random weights everywhere, for authors' initial values hide half of the network behind zeros."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_head_size": 8,
    "intermediate_size": 24,
}
# What is run of each version: model and its own sizes.
VERSIONS = {
    "4": {"model": "rwkv4", "num_attention_heads": None, "attention_head_size": None},
    "5.0": {"model": "rwkv5", "variant": "5.0"},
    "5.0 time_first": {"model": "rwkv5", "variant": "5.0", "exponential_bonus": True},
    "5.1": {"model": "rwkv5", "variant": "5.1"},
    "5.2": {"model": "rwkv5", "variant": "5.2"},
    "6": {"model": "rwkv6", "decomposer_size": 4, "time_decay_size": 3},
    "7": {
        "model": "rwkv7",
        "decay_low_rank_dim": 3,
        "a_low_rank_dim": 5,
        "v_low_rank_dim": 1,
        "gate_low_rank_dim": 7,
    },
}
# Those that all laws are run for: each compiles for a minute, and what sets the others apart lies outside the state.
LAWFUL = ["4", "5.2", "6", "7", *(pytest.param(version, marks=pytest.mark.slow) for version in ("5.0", "5.1"))]


def lawful(*everywhere, jax=()):
    """LAWFUL, of which only these are run on every backend, those of `jax` there too, and the others on PyTorch:
    tracing takes longest on TensorFlow, and a while on JAX. `make test-all` runs all everywhere.
    """

    def chosen(version):
        if not isinstance(version, str) or version in everywhere:
            return version
        return pytest.param(version, marks=pytest.mark.on(*["jax"] * (version in jax), "torch"))

    return [chosen(version) for version in LAWFUL]


def small_model(version="6", seed=0, **options):
    """An RWKV whose every weight is random. version: a key of `VERSIONS`."""
    rwkv = build_transformer_model(**{**SIZES, **VERSIONS[version], **options})
    scatter(rwkv, seed)
    return rwkv


def scatter(rwkv, seed=0):
    """Fill the weights with random numbers of a size that keeps activations around 1."""
    generator = np.random.default_rng(seed)
    for variable in rwkv.backbone.variables:
        shape = tuple(variable.shape)
        spread = 0.6 if len(shape) == 1 else 1.2 / max(shape[-2], 1) ** 0.5
        value = generator.normal(0, spread, shape)
        variable.assign((value + 1 if variable.name == "gamma" else value).astype("float32"))


def texts(generator, batch, length, vocab_size=SIZES["vocab_size"]):
    """Random ids (batch, length), 0 among them."""
    return generator.integers(0, vocab_size, (batch, length)).astype("int32")


def arrays(logits, state):
    """Logits, wkv and shift as NumPy."""
    return [ops.convert_to_numpy(ops.cast(x, "float32")) for x in (logits, state.wkv, state.shift)]


def assert_close(got, want, bar=1e-4):
    """Each tensor within `bar` of its largest absolute answer: float32 sums in another order."""
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert np.abs(g - w).max() <= bar * np.abs(w).max()
