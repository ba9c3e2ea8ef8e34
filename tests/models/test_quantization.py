"""Models whose matrices are stored in fewer bytes: what they compute, how they are copied, what trains on top."""

import copy

import numpy as np
import pytest

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.projection import scheme_of
from bert4keras_rwkv.models.quantization import Quantization, projections
from bert4keras_rwkv.ops.matmul import FEW, Scheme
from tests.models.small import small_model

IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]])  # more than FEW
NAMES = ("bfloat16", "int8", "int4")
# What compiles long: one everywhere, all on PyTorch, which compiles nothing.
SOME_NAMES = ["int8", *(pytest.param(name, marks=pytest.mark.on("torch")) for name in ("bfloat16", "int4"))]
SOME_VERSIONS = ["7", *(pytest.param(version, marks=pytest.mark.on("torch")) for version in ("4", "5.2", "6"))]


def logits(rwkv, ids=IDS):
    return ops.convert_to_numpy(ops.stop_gradient(rwkv.forward(ids)[0]))


def quantised(name, version="7", **options):
    rwkv = small_model(version, **options)
    rwkv.quantize(name)
    return rwkv


@pytest.mark.parametrize("version", SOME_VERSIONS)
def test_bfloat16_is_the_model_of_rounded_matrices(version):
    rwkv, rounded = quantised("bfloat16", version), small_model(version)
    for path, layer in projections(rounded.backbone).items():
        layer._kernel.assign(projections(rwkv.backbone)[path].kernel)
    wanted = logits(rounded)
    np.testing.assert_allclose(logits(rwkv), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", SOME_VERSIONS)
def test_at_once_and_one_by_one(version, name):
    """The law of exact states, but that a number halfway between two may be rounded to the other one.

    Among so few numbers that is half a percent, of all tokens from there on. That rows of any number are rounded
    alike is a law of `matmul` (tests/ops/test_matmul.py).
    """
    rwkv = quantised(name, version)
    assert IDS.size > FEW
    wanted, state = rwkv.forward(IDS)
    now, got = None, []
    for i in range(IDS.shape[1]):
        here, now = rwkv.forward(IDS[:, i : i + 1], now)
        got.append(here)
    pairs = [(ops.concatenate(got, axis=1), wanted), (now.wkv, state.wkv), (now.shift, state.shift)]
    pairs = [[ops.convert_to_numpy(ops.stop_gradient(x)) for x in pair] for pair in pairs]
    for one, whole in pairs:
        np.testing.assert_allclose(one, whole, atol=(1e-5 if name == "bfloat16" else 1e-2) * np.abs(whole).max())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_packed(name):
    rwkv = quantised(name, "6")
    bits = {"bfloat16": 16, "int8": 8, "int4": 4}[name]
    found = {path: scheme_of(layer).bits for path, layer in projections(rwkv.backbone).items()}
    assert found == {path: 8 if path == "head" and bits == 4 else bits for path in found}
    assert "head" in found and "blocks/1/channel_mix/value" in found and not any("low_rank" in path for path in found)
    trained = {variable.path for variable in rwkv.backbone.trainable_variables}
    assert not any(v.path in trained for layer in projections(rwkv.backbone).values() for v in layer.variables)


def test_what_is_skipped():
    rwkv = small_model("7")
    rwkv.quantize(Quantization(Scheme(4), None, skip=("blocks/0", "value")))
    packed = {path for path, layer in projections(rwkv.backbone).items() if scheme_of(layer)}
    assert packed == {f"blocks/1/time_mix/{name}" for name in ("receptance", "key", "output_projection")} | {
        "blocks/1/channel_mix/key"
    }


@pytest.mark.parametrize("name", SOME_NAMES)
def test_copies_and_files(name, tmp_path):
    rwkv = quantised(name)
    wanted = logits(rwkv)
    np.testing.assert_array_equal(logits(copy.deepcopy(rwkv)), wanted)
    rwkv.model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(ops.convert_to_numpy(ops.stop_gradient(again([IDS]))), wanted, atol=1e-5)
    rwkv.model.save_weights(tmp_path / "model.weights.h5")
    other = quantised(name, seed=5)
    other.model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(logits(other), wanted)
    with pytest.raises(ValueError, match="Build the model with the same `quantization`"):
        small_model("7").model.load_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="as it is quantised here"):
        quantised("int8" if name == "int4" else "int4").model.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("name", SOME_NAMES)
def test_a_lora_and_a_state_train_on_it(name, tmp_path):
    rwkv = quantised(name)
    before = logits(rwkv)
    packed = {v.path: ops.convert_to_numpy(v) for v in rwkv.backbone.non_trainable_variables}
    rwkv.enable_lora(rank=2)
    rwkv.enable_state_tuning(time_shift_tuning=True)
    np.testing.assert_allclose(logits(rwkv), before, atol=1e-5)
    model = rwkv.training_model()
    model.compile(keras.optimizers.Adam(1e-2))
    losses = [float(model.train_on_batch([IDS])) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05
    for path, value in packed.items():
        now = next(v for v in rwkv.backbone.variables if v.path == path)
        np.testing.assert_array_equal(ops.convert_to_numpy(now), value)
    trained = logits(rwkv)
    rwkv.save_adapter(tmp_path / "tuned.safetensors")
    other = quantised(name)
    other.load_adapter(tmp_path / "tuned.safetensors")
    np.testing.assert_allclose(logits(other), trained, atol=1e-5)
    np.testing.assert_allclose(logits(copy.deepcopy(rwkv)), trained, atol=1e-5)


def test_bad_calls():
    rwkv = quantised("int8")
    with pytest.raises(ValueError, match="quantised already"):
        rwkv.quantize("int4")
    with pytest.raises(ValueError, match=r"`Quantization`, or None\. Received: 'int3'"):
        small_model("7", quantization="int3")
    with pytest.raises(ValueError, match="multiple of 32"):
        Scheme(4, group=48)
    with pytest.raises(ValueError, match="has a LoRA"):
        tuned = small_model("7")
        tuned.enable_lora(rank=2)
        tuned.quantize("int8")
    broken = small_model("7")
    layer = broken.backbone.blocks[1].time_mix.key
    layer.kernel.assign(ops.full(layer.kernel.shape, np.inf))
    with pytest.raises(ValueError, match="time_mix/key' cannot be quantised: its largest number is inf"):
        broken.quantize("int8")
    assert not any(scheme_of(one) for one in projections(broken.backbone).values())
