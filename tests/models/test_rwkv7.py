"""What RWKV-7 alone has: a first value that crosses layers, keys of length one, unused tensors in its first block."""

import os
import subprocess
import sys

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.layers.rwkv7 import initial_values, unit_length
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.ops.wkv7 import wkv7
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import write_pth
from tests.gradients import gradients
from tests.models.small import SIZES, VERSIONS, arrays, assert_close, small_model, texts
from tests.models.test_truths import check_numpy
from tests.official import official_weights

RANKS_OF_ONE = {f"{name}_low_rank_dim": 1 for name in ("decay", "a", "v", "gate")}


@pytest.mark.on("torch")
@pytest.mark.once
@pytest.mark.parametrize(
    "options",
    [
        {"num_attention_heads": 1, "attention_head_size": 16, **RANKS_OF_ONE},
        {"num_attention_heads": 16, "attention_head_size": 1},
        {"num_hidden_layers": 1, "hidden_size": 6, "attention_head_size": 3},
        {"num_hidden_layers": 4},
        {"group_norm_epsilon": 1e-5},
    ],
    ids=["one head", "heads of one", "one layer", "several layers", "another epsilon"],
)
def test_odd_sizes(options, rng):
    check_numpy("7", rng, **options)


def test_the_first_value_is_not_that_of_the_layer_before(rng):
    """With blocks that add nothing but the last, only the first block's value can change the last block's."""
    rwkv, ids = small_model("7", num_hidden_layers=3), texts(rng, 1, 9)
    for block in rwkv.backbone.blocks[:2]:
        for layer in (block.time_mix.output_projection, block.channel_mix.value):
            layer.kernel.assign(0 * layer.kernel)
    before = ops.convert_to_numpy(rwkv.forward(ids)[0])
    middle, first = (rwkv.backbone.blocks[i].time_mix.value.kernel for i in (1, 0))
    middle.assign(2 * middle)
    np.testing.assert_array_equal(ops.convert_to_numpy(rwkv.forward(ids)[0]), before)
    first.assign(2 * first)
    assert np.abs(ops.convert_to_numpy(rwkv.forward(ids)[0]) - before).max() > 0.01


@pytest.mark.once
def test_tensors_of_the_first_block_that_mean_nothing(rng, tmp_path):
    """Files of the trainer and of llama.cpp's converter hold v0, v1, v2 for the first block, with any rank."""
    weights = official_weights("7", rng)
    extra = {
        f"blocks.0.att.{name}": rng.normal(size=shape).astype("float32")
        for name, shape in {"v0": (1, 1, 16), "v1": (16, 5), "v2": (5, 16)}.items()
    }
    ids, answers = texts(rng, 1, 9, vocab_size=32), []
    for name, tensors in {"without": weights, "with": weights | extra}.items():
        write_pth(tmp_path / f"{name}.pth", tensors)
        rwkv = build_transformer_model(checkpoint_path=tmp_path / f"{name}.pth")
        assert rwkv.config.v_low_rank_dim == 4
        assert list(rwkv.weights()) == list(weights), "the order of a released file"
        answers.append(arrays(*rwkv.forward(ids)))
    assert_close(*answers, bar=0)


@pytest.mark.parametrize("length", [1e3, 1.0, 1e-11, 1e-13, 0.0])
def test_keys_have_length_one(length, rng):
    """A key shorter than 1e-12 is divided by 1e-12, as the authors do; 1e-6 of the answer."""
    x = rng.normal(size=(3, 8))
    x = length * x / np.linalg.norm(x, axis=-1, keepdims=True)
    want = x / max(length, 1e-12)
    np.testing.assert_allclose(ops.convert_to_numpy(unit_length(ops.convert_to_tensor(x, "float32"))), want, atol=1e-6)


def test_keys_of_length_zero_train(rng):
    """They remove nothing and learn nothing by it: the gradient is what it is without them, not NaN."""
    r, w, k, v, rate = (rng.normal(size=(1, 9, 2, 4)).astype("float32") for _ in range(5))
    k[:, [0, 3, 8]] = 0
    state = rng.normal(size=(1, 2, 4, 4)).astype("float32")

    def loss(k, directions):
        kk = unit_length(k) * directions
        y, end = wkv7(r, -ops.sigmoid(w), k, v, -kk, kk * ops.sigmoid(rate), state)
        return ops.sum(y * y) + ops.sum(end)

    found, _ = gradients(loss, [k, np.ones_like(k)], jit=True)
    directions = np.ones_like(k)
    directions[:, [0, 3, 8]] = 0
    np.testing.assert_allclose(found, gradients(loss, [k, directions], jit=True)[0], rtol=1e-4, atol=1e-4)
    assert np.abs(found).max() < 1e3


def test_training_begins_as_the_authors_begin():
    """Numbers by their formulas, channel by channel; matrices orthonormal up to their gain (1e-6: float32)."""
    sizes = {**SIZES, **VERSIONS["7"], "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 3}
    weights = build_transformer_model(**sizes, pad_token_id=None).weights()
    C, N, layer, layers = 24, 8, 1, 3
    for n in range(C):
        zigzag = (n % N - 3.5) / 3.5
        zigzag, linear = zigzag * abs(zigzag), n / (C - 1) - 0.5
        want = {
            "att.x_w": 1 - (n / C) ** (0.9 * (1 - layer / layers)),
            "att.x_g": 1 - (n / C) ** (0.2 * (1 - layer / layers)),
            "att.w0": -6 + 6 * (n / (C - 1)) ** (1 + 0.5**0.3) + 0.5 + 2.5 * zigzag,
            "att.a0": -0.19 + 0.3 * zigzag + 0.4 * linear,
            "att.v0": 0.73 - 0.4 * linear,
            "att.k_k": 0.71 - 0.1 * linear,
            "att.k_a": 1.02,
            "att.r_k": -0.04,
            "att.ln_x.weight": ((1 + layer) / layers) ** 0.7,
            "ffn.x_k": 1 - (n / C) ** ((1 - layer / layers) ** 4),
        }
        got = {name: np.asarray(weights[f"blocks.{layer}.{name}"]).ravel()[n] for name in want}
        assert got == pytest.approx(want, abs=1e-6)
    gains = {"att.w2": 0.1, "att.g2": 0.1, "att.receptance.weight": 1, "att.key.weight": 0.1, "ffn.key.weight": 1}
    for name, gain in gains.items():
        matrix = np.asarray(weights[f"blocks.{layer}.{name}"])
        square = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(square, gain**2 * np.eye(len(square)), atol=1e-6)
    for name in ("att.w1", "att.v1", "att.output.weight", "ffn.value.weight"):
        assert not np.asarray(weights[f"blocks.{layer}.{name}"]).any()


def test_initial_values_of_the_smallest_model():
    """One layer, one head of one channel: no division by zero."""
    config = small_model("7", num_hidden_layers=1, hidden_size=1, num_attention_heads=1, attention_head_size=1).config
    values = initial_values(config, 0)["time_mix"]
    assert all(np.isfinite(ops.convert_to_numpy(values[name]((1,)))).all() for name in ("decay", "rate", "value_mix"))


PACKAGE = """
import sys
import numpy as np
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1], strategy="cpu fp32")
logits, state = model.forward(np.load(sys.argv[2]).tolist(), None, full_output=True)
np.savez(sys.argv[3], logits.numpy(), *[x.numpy() for x in state])
"""


@pytest.mark.live
def test_rwkv_package(tmp_path, rng):
    """A file that we wrote, read by the `rwkv` package: the same logits and state. It keeps matrices as [value, key].

    In a process of its own, for RWKV_V7_ON changes what the package is.
    """
    pytest.importorskip("torch")
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "attention_head_size": 64, "intermediate_size": 256}
    rwkv = small_model("7", **sizes, v_low_rank_dim=2)
    ids = texts(rng, 1, 30)
    np.save(tmp_path / "ids.npy", ids[0])
    write_pth(tmp_path / "small.pth", rwkv.weights())
    subprocess.run(
        [sys.executable, "-c", PACKAGE, *(str(tmp_path / name) for name in ("small", "ids.npy", "answers.npz"))],
        env={**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"},
        check=True,
        capture_output=True,
    )
    logits, *state = np.load(tmp_path / "answers.npz").values()
    wkv = np.stack([state[3 * i + 1].swapaxes(-1, -2) for i in range(2)])
    shift = np.stack([state[3 * i + j] for i in range(2) for j in (0, 2)])
    want = arrays(logits[None], RWKVState(wkv[None], shift[None, :, None]))
    assert_close(arrays(*rwkv.forward(ids)), want)
    assert_close(arrays(*build_transformer_model(checkpoint_path=tmp_path / "small.pth").forward(ids)), want)
