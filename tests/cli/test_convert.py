"""`convert` loses nothing, whichever way round, and leaves nothing half done."""

import json
import os
import signal
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.weights import open_weights, write_pth

pytestmark = pytest.mark.backend_free


def contents(path):
    with open_weights(path) as tensors:
        return dict(tensors)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_once_around(model, tmp_path, capsys):
    """.pth, preset, .safetensors, .pth: the same tensors in the same order, the vocabulary beside them."""
    path = model
    for target in ("preset", "a.safetensors", "b.pth"):
        assert main(["convert", str(path), str(tmp_path / target)]) == 0
        path = tmp_path / target
    assert_same(contents(path), contents(model))
    assert sorted(os.listdir(tmp_path / "preset")) == ["config.json", "model.weights.h5", "vocab.txt"]
    assert json.loads((tmp_path / "preset/config.json").read_text())["dtype"] == "float32"
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.pth", "model", "preset"]


def test_a_dtype(model, tmp_path):
    assert main(["convert", str(model), str(tmp_path / "preset"), "--dtype", "bfloat16"]) == 0
    found = contents(tmp_path / "preset")
    assert_same(found, {name: array.astype(ml_dtypes.bfloat16) for name, array in contents(model).items()})


def test_the_order_of_released_files(model, tmp_path):
    """Some programs take the tensors of a `.pth` by position; a file sorted by name comes out in the right order."""
    arrays = contents(model)
    write_pth(tmp_path / "sorted.pth", dict(sorted(arrays.items())))
    assert main(["convert", str(tmp_path / "sorted.pth"), str(tmp_path / "b.pth")]) == 0
    assert_same(contents(tmp_path / "b.pth"), arrays)


def test_a_preset_that_exists_keeps_its_other_files(model, tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset/README.md").write_text("mine")
    assert main(["convert", str(model), str(tmp_path / "preset")]) == 0
    assert (tmp_path / "preset/README.md").read_text() == "mine"
    assert_same(contents(tmp_path / "preset"), contents(model))


@pytest.mark.parametrize("target", ["a.gguf", "a.weights.h5", "a.bin"])
def test_unknown_targets(model, tmp_path, capsys, target):
    assert main(["convert", str(model), str(tmp_path / target)]) == 1
    assert "NAME.safetensors, NAME.pth, or a folder" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["a.pth", "preset"])
def test_weights_that_do_not_fit_write_nothing(model, tmp_path, capsys, target):
    arrays = contents(model)
    del arrays["ln_out.bias"]
    write_pth(tmp_path / "torn.pth", arrays)
    assert main(["convert", str(tmp_path / "torn.pth"), str(tmp_path / target)]) == 1
    assert "nothing in the file fills 'ln_out/beta' (ln_out.bias)" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["model", "torn.pth"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("target", ["a.pth", "a.safetensors", "preset"])
def test_ctrl_c_is_clean(model, tmp_path, start, target):
    """Stopped in the middle of writing: 130, no traceback, and nothing under the name or a temporary one.

    The middle is made sure of by a tensor that is slow to read.
    """
    slow = (
        "import sys, time\n"
        "from bert4keras_rwkv.weights import tensors\n"
        "read = tensors.Tensor.pieces\n"
        "def slowly(self):\n"
        "    if self.shape == (16,): print('now', flush=True); time.sleep(60)\n"
        "    return read(self)\n"
        "tensors.Tensor.pieces = slowly\n"
        "from bert4keras_rwkv.cli import main\n"
        "sys.exit(main())"
    )
    running = start("-c", slow, "convert", model, tmp_path / target)
    assert running.stdout.readline() == b"now\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, b"\nStopped.\n")
    assert os.listdir(tmp_path) == ["model"]
