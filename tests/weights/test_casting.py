"""What we write, others read; it is whole or not there."""

import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth, write_safetensors
from bert4keras_rwkv.weights.tensors import Tensor, Tensors

pytestmark = pytest.mark.backend_free

WRITERS = {"pth": write_pth, "safetensors": write_safetensors}


@pytest.mark.live
def test_torch_loads_our_pth(tmp_path, official):
    """With `weights_only=True`, in the same order, mapped or not; every dtype torch has too."""
    torch = pytest.importorskip("torch")
    official["half"] = np.ones((2, 3), np.float16)
    official["bfloat"] = np.ones((3,), ml_dtypes.bfloat16)
    official["scalar"] = np.ones((), np.float64)
    official["empty"] = np.ones((0, 2), np.float32)
    official["ints"] = np.arange(3)
    write_pth(tmp_path / "a.pth", official)
    for mapped in (False, True):
        found = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)
        assert list(found) == list(official)
        for name, array in official.items():
            assert (tuple(found[name].shape), str(found[name].dtype)) == (array.shape, f"torch.{array.dtype}")
            assert torch.equal(found[name].double(), torch.from_numpy(array.astype(np.float64)))
            assert found[name].numel() == 0 or found[name].data_ptr() % 16 == 0


@pytest.mark.parametrize("kind", WRITERS)
def test_there_and_back_keeps_bits_and_order(tmp_path, kind, official, same):
    WRITERS[kind](tmp_path / "a", official)
    with open_weights(tmp_path / "a") as tensors:
        same(tensors, official)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_dtype_casts_what_is_floating(tmp_path, kind, dtype, official):
    official["ints"] = np.arange(3)
    WRITERS[kind](tmp_path / "a", official, dtype=dtype)
    with open_weights(tmp_path / "a") as tensors:
        assert tensors.dtypes.pop("ints") == np.int64
        assert {str(kind) for name, kind in tensors.dtypes.items() if name != "ints"} == {dtype}
        np.testing.assert_array_equal(
            tensors["emb.weight"], official["emb.weight"].astype(tensors.dtypes["emb.weight"])
        )


def test_an_unknown_dtype_says_which_are_known(tmp_path):
    with pytest.raises(WeightsError, match=r"'float8' is not known\. Known: bfloat16, float64"):
        write_pth(tmp_path / "a", {"a": np.zeros(2)}, dtype="float8")


@pytest.mark.parametrize("kind", WRITERS)
def test_tensor_by_tensor_with_progress(tmp_path, kind, official):
    """Each is read once, and reported when it is written."""
    log = []

    def reading(name):
        return lambda: log.append(name) or official[name]

    lazy = Tensors({name: Tensor(array.shape, array.dtype, reading(name)) for name, array in official.items()})
    WRITERS[kind](tmp_path / "a", lazy, progress=lambda done, total: log.append((done, total)))
    expected = [entry for i, name in enumerate(official) for entry in (name, (i + 1, len(official)))]
    assert log == expected


class Stopped(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("reason", [Stopped, KeyboardInterrupt, OSError])
def test_nothing_is_left_of_a_write_that_stops(tmp_path, kind, reason, official):
    """Neither a half file nor a temporary one; an older file under the name stays."""

    def stop():
        raise reason

    (tmp_path / "old").write_bytes(b"old")
    lazy = {name: Tensor(array.shape, array.dtype, lambda array=array: array) for name, array in official.items()}
    lazy["head.weight"] = Tensor((16, 8), np.dtype(np.float32), stop)
    for target in ("new", "old"):
        with pytest.raises(reason):
            WRITERS[kind](tmp_path / target, Tensors(lazy))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old", b"old")]


def test_a_file_that_is_whole_takes_its_name(tmp_path):
    with atomic_file(tmp_path / "a") as unfinished:
        unfinished.write_bytes(b"new")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


FULL = """
    import resource, signal, sys
    import numpy as np
    from bert4keras_rwkv.config import RWKVConfig
    from bert4keras_rwkv.weights import write_keras_h5, write_pth, write_safetensors
    from tests.official import official_weights

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    tensors = official_weights("6", np.random.default_rng(0), heads=4, head_size=64)
    kind, path = sys.argv[1:]
    if kind == "h5":
        write_keras_h5(path, tensors, RWKVConfig.from_shapes({name: t.shape for name, t in tensors.items()}))
    else:
        {"pth": write_pth, "safetensors": write_safetensors}[kind](path, tensors)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("kind", ["pth", "safetensors", "h5"])
def test_a_full_disk_leaves_nothing(tmp_path, kind):
    """A limit on the file size stands for the disk: the process fails with an error and the folder is empty."""
    command = [sys.executable, "-c", textwrap.dedent(FULL), kind, str(tmp_path / "a")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "OSError" in ended.stderr
    assert list(tmp_path.iterdir()) == []
