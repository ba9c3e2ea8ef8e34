"""`kernels` lists what there is, compares it with the loop, and removes it."""

import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.ops.kernels import cuda, kept, library, nvrtc
from tests.ops.kernels.stand_in import StandIn

pytestmark = pytest.mark.on("torch")


def listed(capsys, *options):
    assert main(["kernels", *options]) == 0
    return capsys.readouterr().out


def test_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(cuda, "_found", {})
    monkeypatch.setattr(nvrtc, "installed", list)
    library.library()
    text = listed(capsys)
    assert f"Runs        {library.library().levels()[0]}" in text
    assert "NVRTC       none is found\nGPU         None: There is no CUDA driver (/nowhere/libcuda.so.1).\n" in text


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
    assert f"Cubins      1, in {kept.folder()}" in text
    assert listed(capsys, "--clear").count("Removed ") == 2
    assert not list(kept.folder().iterdir())
