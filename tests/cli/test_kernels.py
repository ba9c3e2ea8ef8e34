"""`kernels` shows, builds, checks and removes the native kernels; without a check no backend is needed."""

import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.ops.kernels import check, cuda, kept, library, nvrtc
from tests.ops.kernels import quick
from tests.ops.kernels.stand_in import StandIn


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and a compiler that is quick."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(quick.compiler(tmp_path)))
    monkeypatch.setattr(library, "LEVELS", {})
    monkeypatch.setattr(library, "_ffi_headers", lambda: None)  # XLA's take longer than all else
    monkeypatch.setattr(library, "_found", {})
    return tmp_path / "bert4keras-rwkv" / "kernels"


@pytest.mark.backend_free
def test_from_nothing_to_nothing(cache, capsys, caplog, monkeypatch):
    assert main(["kernels"]) == 0
    assert "not built yet" in capsys.readouterr().out and not list(cache.glob("*.so")) and not caplog.records
    assert main(["kernels", "--build"]) == 0
    (path,), (told,) = cache.glob("*.so"), caplog.messages
    assert capsys.readouterr().out == f"Built {path}\n" and told.endswith(f"kept in '{cache}'.")
    monkeypatch.setenv("OPS_KERNEL", "1")
    assert main(["kernels"]) == 0
    out = capsys.readouterr().out
    assert "Runs        plain" in out and "OPS_KERNEL is 1" in out
    assert main(["kernels", "--clear"]) == 0
    assert str(path) in capsys.readouterr().out and not list(cache.iterdir())


@pytest.mark.backend_free
def test_without_a_compiler(cache, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere")
    assert main(["kernels"]) == 0
    out = capsys.readouterr().out
    assert out.count("none is found (/nowhere)") == 1 and "none is found (/nowhere). Pure Keras ops run." in out
    assert "GPU         Its kernels are started by the library for the processor, and that is not here." in out
    assert main(["kernels", "--build"]) == 1
    assert "none is found (/nowhere)" in capsys.readouterr().err


@pytest.mark.on("torch")
def test_a_wrong_kernel_is_a_failure(capsys, monkeypatch):
    cases = {"shapes": [(1, 3, 1, 4)], "masks": ["none"], "levels": ["plain"], "names": ["wkv6"]}
    findings, (product, *_) = list(check.check_kernels(**cases)), check.check_products(["plain"])
    monkeypatch.setattr(check, "check_kernels", lambda: findings)
    monkeypatch.setattr(check, "check_products", lambda: [product])
    assert main(["kernels", "--check", "--backend", "torch"]) == 0
    out = capsys.readouterr().out
    assert "wkv6              plain" in out and "product_bfloat16  plain" in out
    monkeypatch.setattr(check, "LARGEST_ERROR", dict.fromkeys(check.LARGEST_ERROR, 0.0))
    assert main(["kernels", "--check", "--backend", "torch"]) == 1
    captured = capsys.readouterr()
    assert "Wrong: Finding" in captured.out and "Set OPS_KERNEL=1" in captured.err


@pytest.mark.on("torch")
def test_a_kernel_that_gives_no_numbers_is_shown_so(capsys, monkeypatch):
    errors = (1e-7, float("nan"), 2e-7)
    findings = [check.Finding("wkv6", "plain", (1, 3, 1, 4), "none", "float32", error) for error in errors]
    monkeypatch.setattr(check, "check_kernels", lambda: findings)
    monkeypatch.setattr(check, "check_products", lambda: [])
    assert main(["kernels", "--check", "--backend", "torch"]) == 1
    assert "wkv6  plain   float32   nan" in capsys.readouterr().out


@pytest.mark.on("torch")
def test_a_backend_without_kernels(capsys, monkeypatch):
    monkeypatch.setattr("bert4keras_rwkv.ops.kernels.native.ON", ())
    assert main(["kernels", "--check", "--backend", "torch"]) == 1
    assert "Keras runs on torch" in capsys.readouterr().err


@pytest.mark.on("torch")
def test_what_is_not_used(capsys, monkeypatch):
    assert "Not used" not in listed(capsys)
    assert "Not used    Keras runs on tensorflow: pure Keras ops." in listed(capsys, "--backend", "tensorflow")
    monkeypatch.setenv("OPS_KERNEL", "2")
    assert "Wrong       OPS_KERNEL is 0 (native kernels) or 1 (pure ops), else an error. Received: '2'." in listed(
        capsys
    )


def listed(capsys, *options):
    assert main(["kernels", *options]) == 0
    return capsys.readouterr().out


@pytest.mark.on("torch")
def test_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(cuda, "_found", {})
    monkeypatch.setattr(nvrtc, "installed", list)
    library.library()
    text = listed(capsys)
    assert f"Runs        {library.library().levels()[0]}" in text
    assert (
        "NVRTC       none is found\nGPU         None here: There is no CUDA driver (/nowhere/libcuda.so.1).\n" in text
    )


@pytest.mark.on("torch")
def test_with_a_gpu(capsys, monkeypatch, tmp_path):
    """Its kernels are counted, and removed with the others."""
    StandIn(tmp_path).install(monkeypatch)
    whole = library.plan().path
    kept.kept(whole, lambda made: np.array(0).tofile(made))
    cuda.cubin(cuda.Key("wkv6", "step", 8, ("float", "float"), 90))
    text = listed(capsys)
    assert (
        "GPU         Stand-in, sm_90, a driver for CUDA 13\n            Its kernels are compiled by NVRTC emulator."
        in text
    )
    assert "            By chunks on tensor cores go wkv6 and wkv7 of bfloat16, for heads of 16, 32, 48, 64.\n" in text
    assert f"Cubins      1, in {kept.folder()}" in text
    assert listed(capsys, "--clear").count("Removed ") == 2
    assert not list(kept.folder().iterdir())
