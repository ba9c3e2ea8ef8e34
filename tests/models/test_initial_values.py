"""A model begins as the authors of its version begin to train: the formulas of their training code, channel by channel.

RWKV-LM: RWKV-v4neo/src/model.py, RWKV-v5/src/model.py (as it was for 5.0 and 5.1, and with x052 and x060), and
RWKV-v7/train_temp/src/model.py, whose numbers are in `test_rwkv7.py`.
"""

import math

import numpy as np
import pytest

from bert4keras_rwkv.layers import initial
from bert4keras_rwkv.models import build_transformer_model
from tests.models.small import SIZES, VERSIONS

pytestmark = pytest.mark.backend_free

C, N, LAYERS, LAYER, V = 24, 8, 3, 1, 40
LATER, FADE = LAYER / (LAYERS - 1), 1 - LAYER / LAYERS
FIVE = {"att.receptance.weight": 1, "att.key.weight": 1, "att.value.weight": 1, "att.output.weight": 0}
GATED = {**FIVE, "att.gate.weight": 1}
NEWER = {**GATED, "att.key.weight": 0.1, "att.gate.weight": 0.1}
CHANNEL = {"ffn.receptance.weight": 0, "ffn.value.weight": 0}
WIDENS = 1.5**0.5  # of a key of the channel mix, 24 -> 36
# What multiplies orthonormal rows or columns of a matrix; 0: it is zero.
GAINS = {
    "4": {"att.receptance.weight": 0, "att.key.weight": 0, "att.value.weight": 1, "att.output.weight": 0}
    | {**CHANNEL, "ffn.key.weight": WIDENS},
    "5.0": {**FIVE, **CHANNEL, "ffn.key.weight": WIDENS},
    "5.0 time_first": {**FIVE, **CHANNEL, "ffn.key.weight": WIDENS},
    "5.1": {**GATED, **CHANNEL, "ffn.key.weight": WIDENS},
    "5.2": {**NEWER, **CHANNEL, "ffn.key.weight": 1},
    "6": {**NEWER, **CHANNEL, "ffn.key.weight": 1, "att.time_maa_w1": 0, "att.time_decay_w1": 0},
    "7": {"att.receptance.weight": 1, "att.key.weight": 0.1, "att.value.weight": 1, "att.output.weight": 0}
    | {"ffn.value.weight": 0, "ffn.key.weight": 1}
    | {f"att.{letter}{i}": 0.1 * (i - 1) for letter in "wavg" for i in (1, 2)},
}


def vectors(version, n):
    """What channel (or head) n of block LAYER begins with."""
    share, zigzag = n / C, (n + 1) % 3 - 1
    keep, fast = share**FADE, share ** (0.5 * FADE)
    value = keep + 0.3 * LATER
    slow = -6 + 5 * (n / (C - 1)) ** (0.7 + 1.3 * LATER)
    newer = {
        "att.time_decay": slow,
        "att.time_faaaa": LATER * (1 - n / (C - 1)) + 0.1 * zigzag,
        "att.ln_x.weight": ((1 + LAYER) / LAYERS) ** 0.7,
        "att.ln_x.bias": 0,
    }
    norms = {"ln1.weight": 1, "ln1.bias": 0, "ln2.weight": 1, "ln2.bias": 0}
    shares = {"att.time_mix_k": keep, "att.time_mix_v": value, "att.time_mix_r": fast}
    shares |= {"ffn.time_mix_k": keep, "ffn.time_mix_r": keep}
    if version == "4":
        decay = -5 + 8 * (n / (C - 1)) ** (0.7 + 1.3 * LATER)
        return {**norms, **shares, "att.time_decay": decay, "att.time_first": math.log(0.3) + 0.5 * zigzag}
    if version == "5.2":
        return {**norms, **shares, **newer, "att.time_mix_g": fast}
    others = {"x": keep, "w": keep, "k": keep, "v": value, "r": fast, "g": fast}
    turned = {f"att.time_maa_{name}": 1 - share for name, share in others.items()}
    return {**norms, **newer, **turned, "ffn.time_maa_k": 1 - keep, "ffn.time_maa_r": 1 - keep}


@pytest.fixture(scope="module")
def begun():
    """The weights that a version begins with, under official names."""
    kept = {}

    def weights(version):
        if version not in kept:
            sizes = {**SIZES, "num_hidden_layers": LAYERS, "hidden_size": C, "num_attention_heads": C // N}
            sizes["intermediate_size"] = 36
            kept[version] = build_transformer_model(**{**sizes, **VERSIONS[version]}).weights()
        return kept[version]

    return weights


@pytest.mark.parametrize("version", ["4", "5.2", "6"])
def test_vectors_follow_the_formulas(version, begun):
    """1e-6: float32."""
    for n in range(C):
        want = vectors(version, n)
        got = {name: np.asarray(begun(version)[f"blocks.{LAYER}.{name}"]).ravel()[n] for name in want}
        assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_matrices_are_orthonormal_times_a_gain_or_zero(version, begun):
    """1e-6: float32. The embedding and the head are those of every version; no matrix of a block is left out."""
    weights = begun(version)
    for name, gain in {"head.weight": 0.5 * (V / C) ** 0.5, **_of_the_block(GAINS[version])}.items():
        matrix = np.asarray(weights[name])
        square = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(square, gain**2 * np.eye(len(square)), atol=1e-6)
    named = {name for name, shape in weights.shapes.items() if len(shape) == 2 and f"blocks.{LAYER}." in name}
    loose = {"att.time_faaaa", "att.time_decay", "att.time_decay_w2", "att.r_k"}
    assert named - set(_of_the_block(GAINS[version])) <= {f"blocks.{LAYER}.{name}" for name in loose}


def test_small_uniform_numbers(begun):
    """Embedding and the second low-rank matrices of RWKV-6: within their bounds, and near them somewhere."""
    six = begun("6")
    for name, bound in {
        "emb.weight": 1e-4,
        **_of_the_block({"att.time_maa_w2": 0.01, "att.time_decay_w2": 0.01}),
    }.items():
        assert 0.9 * bound < np.abs(np.asarray(six[name])).max() <= bound


def test_a_head_that_narrows_has_no_more_gain():
    """Fewer ids than channels: 0.5, not 0.5 * sqrt(V / D)."""
    kernel = np.asarray(initial.orthogonal(0.5)((24, 10)))
    np.testing.assert_allclose(kernel.T @ kernel, 0.25 * np.eye(10), atol=1e-6)


def _of_the_block(names):
    return {f"blocks.{LAYER}.{name}": value for name, value in names.items()}
