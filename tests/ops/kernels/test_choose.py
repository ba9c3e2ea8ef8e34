"""Which form runs: what was asked for, or a sentence that says why it cannot."""

import logging

import keras
import pytest

from bert4keras_rwkv import build_transformer_model
from bert4keras_rwkv.ops.kernels import choose, cuda, library, native
from bert4keras_rwkv.ops.kernels.choose import chosen

pytestmark = pytest.mark.cpu
HERE = keras.backend.backend()


def test_native_where_it_serves_and_pure_ops_elsewhere(monkeypatch):
    expected = "native" if HERE in native.ON else "ops"
    monkeypatch.delenv("OPS_KERNEL", raising=False)
    assert chosen() == chosen("auto", "float32") == chosen("auto", "bfloat16") == chosen("auto", "float16") == expected
    assert chosen("auto", "float64") == chosen("auto", "float32", (None, 3)) == "ops"
    monkeypatch.setenv("OPS_KERNEL", "")  # as if it were not set
    assert chosen() == expected
    monkeypatch.setenv("OPS_KERNEL", "1")
    assert chosen() == "ops" and chosen("loop") == "loop" and chosen("ops") == "ops"


@pytest.mark.skipif(HERE not in native.ON, reason="nothing native runs there")
def test_asked_for_it_says_why_not(monkeypatch):
    assert chosen("native") == "native"
    with pytest.raises(ValueError, match=r"kernel='native' .* float64\. kernel='auto'"):
        chosen("native", "float64")
    heads = {"attention_head_size": 32, "num_attention_heads": 2}
    for version, more in (("rwkv4", {}), ("rwkv5", heads), ("rwkv6", heads), ("rwkv7", heads)):
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 8, **more}
        with pytest.raises(ValueError, match=r"kernel='native' .* float64\. kernel='auto'"):  # before any call
            build_transformer_model(model=version, kernel="native", dtype="float64", **sizes)
    monkeypatch.setitem(library._found, "here", library.NoLibraryError("There is no compiler."))
    with pytest.raises(ValueError, match=r"There is no compiler\."):
        build_transformer_model(model="rwkv6", kernel="native", hidden_size=64, num_hidden_layers=1, vocab_size=8)
    assert chosen() == "ops"


@pytest.mark.skipif(HERE in native.ON, reason="something native runs there")
def test_a_backend_without_any():
    with pytest.raises(ValueError, match=rf"Keras runs on {HERE}"):
        chosen("native")


@pytest.mark.skipif(HERE not in native.ON, reason="nothing native runs there")
def test_what_each_device_has(monkeypatch):
    """A GPU without a driver, another accelerator, and heads too large for the gradient on a GPU."""
    monkeypatch.setattr(cuda, "_found", {})
    monkeypatch.setattr(cuda, "DRIVER", "/nowhere/libcuda.so.1")
    for kind, reason in (("tpu", r"another device \(tpu\)"), ("cuda", r"no CUDA driver \(/nowhere")):
        monkeypatch.setattr(native, "_device", {"here": kind})
        assert chosen() == "ops"
        with pytest.raises(ValueError, match=reason):
            chosen("native")
    monkeypatch.setattr(cuda, "_found", {"compiler": "an NVRTC"})
    monkeypatch.delenv("OPS_KERNEL", raising=False)
    assert chosen() == "ops"  # until a card has run them
    monkeypatch.setenv("OPS_KERNEL", "0")
    assert chosen() == "native"
    assert native.unfit((1, 2, 3, 128)) is None
    assert "up to 128 numbers, and these have 160" in native.unfit((1, 2, 3, 160))


def test_what_runs_is_said_once(monkeypatch, caplog):
    monkeypatch.delenv("OPS_KERNEL", raising=False)
    choose._said.clear()
    with caplog.at_level(logging.INFO, "bert4keras_rwkv"):
        chosen()
        chosen()
    (record,) = caplog.records
    assert ("native kernels" if HERE in native.ON else "pure Keras ops") in record.getMessage()


@pytest.mark.skipif(HERE not in native.ON, reason="nothing native runs there")
def test_kept_programs_are_told_by_the_kernels_that_they_may_call(monkeypatch):
    """A model that insists has loaded them whatever OPS_KERNEL says; where nothing has, none is opened for it."""
    monkeypatch.setenv("OPS_KERNEL", "1")
    assert chosen("native") == "native" and choose.native_code() == library.library().path.name
    monkeypatch.setattr(library, "_found", {})
    assert choose.native_code() is None and not library._found
