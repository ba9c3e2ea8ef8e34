"""Models that every dialect can hold, and how they are written."""

import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights.formats.registry import format_named
from bert4keras_rwkv.weights.tensors import as_tensors
from tests.official import official_weights

# Hugging Face's classes fix the ranks of RWKV-6, and the width of the channel mix: 3.5 * 16, down to a multiple of 32.
SIZES = {"6": {"ranks": (32, 64), "ffn": 32}, "5.1": {"ffn": 32}, "5.2": {"ffn": 32}}


@pytest.fixture
def random_weights(rng):
    """A function version -> official name -> array. RWKV-7 with ranks 3, 5, 4 and 2."""

    def make(version, **sizes):
        return official_weights(version, rng, **{**SIZES.get(version.partition(" ")[0], {}), **sizes})

    return make


@pytest.fixture
def write():
    """Write official name -> array in the format of this name, cast to nothing unless told."""

    def do(name, path, official, dtype=None):
        tensors = as_tensors(official)
        format_named(name).write(path, tensors, RWKVConfig.from_shapes(tensors.shapes), dtype)
        return path

    return do
