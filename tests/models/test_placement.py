"""Networks whose blocks lie on several devices, are streamed, and are computed in several dtypes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from bert4keras_rwkv.layers.projection import quantised_as
from bert4keras_rwkv.models import RWKV, build_transformer_model
from bert4keras_rwkv.models.quantization import projections
from bert4keras_rwkv.models.writer import Writer
from bert4keras_rwkv.ops import devices
from tests.models.small import SIZES, VERSIONS, arrays, assert_close, small_model

IDS = np.array([[3, 1, 4, 1, 5, 9, 2]])
BACKEND = keras.backend.backend()
STREAMS = pytest.mark.skipif(BACKEND not in ("jax", "torch"), reason="other backends stream nothing")


def made(version, strategy, **options):
    """A small model with the weights of `small_model(version)`, by way of a file."""
    return small_model(version, strategy=strategy, **options)


@pytest.mark.skipif(BACKEND != "jax", reason="a processor is several devices for JAX only")
def test_several_devices_compute_what_one_does(tmp_path):
    """Four of them, in a process of their own; there streamed blocks take no more memory than two of them, too."""
    small_model("7", num_hidden_layers=4, intermediate_size=1000).save_to_preset(tmp_path / "model")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.several_devices", str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all is the same"


@STREAMS
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_what_is_streamed_is_what_lies_there(version):
    one, rwkv = small_model(version), made(version, "cpu fp32 *1+")
    assert rwkv.backbone.placement is not None
    assert_close(arrays(*rwkv.forward(IDS)), arrays(*one.forward(IDS)), 1e-5)
    options = {"sampling": "greedy", "stop_token_ids": None}
    assert list(rwkv.generate([1, 2, 3], 20, **options)) == list(one.generate([1, 2, 3], 20, **options))
    rwkv.enable_lora(2)
    assert_close(arrays(*rwkv.forward(IDS)), arrays(*one.forward(IDS)), 1e-5)


@pytest.mark.parametrize("version", ["6", "7"])
def test_a_strategy_of_one_kind_is_dtype_and_quantization(version):
    """Nothing lies elsewhere then, and all works as without one."""
    rwkv, other = made(version, "cpu fp32i8"), small_model(version)
    other.quantize("int8")
    assert rwkv.backbone.placement is None
    packed = {path: quantised_as(layer) for path, layer in projections(rwkv.backbone).items()}
    assert packed == {path: quantised_as(layer) for path, layer in projections(other.backbone).items()}


def test_blocks_of_several_dtypes(tmp_path):
    """Half of the network in bfloat16: nearer to float32 than all of it, and the state is exact to what it keeps."""
    one = small_model("7", num_hidden_layers=4)
    one.save_to_preset(tmp_path / "model")
    rwkv = RWKV.from_preset(tmp_path / "model", strategy="cpu bf16i8 *2 -> cpu fp32")
    assert [block.compute_dtype for block in rwkv.backbone.blocks] == ["bfloat16"] * 2 + ["float32"] * 2
    assert (rwkv.backbone.embed.compute_dtype, rwkv.backbone.head.compute_dtype) == ("bfloat16", "float32")
    assert rwkv.backbone.compute_dtype == "float32"
    logits, state = rwkv.forward(IDS)
    assert_close(arrays(logits, state), arrays(*one.forward(IDS)), 0.2)
    second, last = rwkv.forward(IDS[:, 3:], rwkv.forward(IDS[:, :3])[1])
    assert_close(arrays(second, last)[1:], arrays(logits, state)[1:], 0.05)
    assert_close(arrays(*copy.deepcopy(rwkv).forward(IDS)), arrays(logits, state), 1e-5)


def test_float16_anywhere_halves_the_stream():
    assert made("6", "cpu fp32 *1 -> cpu fp16").backbone.rescale_layer == 6
    assert made("6", "cpu fp32 *1 -> cpu bf16").backbone.rescale_layer == 0


def test_a_keras_model_needs_one_device():
    if not devices.are_several():
        with pytest.raises(ValueError, match="streams nothing"):
            made("6", "cpu fp32 *1+")
        return
    rwkv = made("6", "cpu fp32 *1+")
    for use in (
        lambda: rwkv.model.predict(IDS, verbose=0),
        rwkv.training_model,
        lambda: rwkv.build_cache_model([8], 0),
    ):
        with pytest.raises(ValueError, match=r"on one device, cpu:0, and .* streamed\. It reads and writes"):
            use()
    rwkv.forward(IDS)  # it has its weights still


@pytest.mark.on("jax")
@pytest.mark.parametrize(("strategy", "begun"), [("cpu fp32 *1+", 1), ("cpu fp32", 2)])
def test_who_waits_does_not_begin_the_next_step(strategy, begun, monkeypatch):
    """A step with streamed blocks is over when it returns: to begin another first would only keep the token back."""
    steps, step = [], Writer.step
    monkeypatch.setattr(Writer, "step", lambda *given: steps.append(1) or step(*given))
    next(iter(made("6", strategy).stream(IDS[0].tolist(), max_new_tokens=5, stop_token_ids=None)))
    assert len(steps) == begun


def test_bad_input():
    build = {**SIZES, **VERSIONS["6"]}
    with pytest.raises(ValueError, match="no device 'cuda:99' here for"):
        build_transformer_model(**build, strategy="cuda:99 fp16")
    with pytest.raises(ValueError, match="no device 'cpu:7' here for"):
        build_transformer_model(**build, strategy="cpu fp32 *1 -> cpu:7 fp32")
    with pytest.raises(ValueError, match="Leave out `dtype` and `quantization`"):
        build_transformer_model(**build, strategy="cpu fp32", dtype="float16")
    with pytest.raises(ValueError, match="goes by the weights of a file"):
        build_transformer_model(**build, strategy="auto")
    with pytest.raises(ValueError, match="word 2 is 'fp17'"):
        build_transformer_model(**build, strategy="cpu fp17")
