"""A path becomes weights by what is in it, not by how it is called."""

import json
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth, write_safetensors
from bert4keras_rwkv.weights.checkpoint import named, open_checkpoint, weights_path

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("writer", [write_pth, write_safetensors])
def test_the_content_decides_not_the_suffix(tmp_path, official, same, writer):
    writer(tmp_path / "weights.txt", official)
    with open_weights(tmp_path / "weights.txt") as tensors:
        same(tensors, official)


def test_a_folder_with_one_weight_file(tmp_path, official):
    write_pth(tmp_path / "a.pth", official)
    assert weights_path(tmp_path) == tmp_path / "a.pth"
    write_safetensors(tmp_path / "b.safetensors", official)
    with pytest.raises(WeightsError, match=r"'a\.pth', 'b\.safetensors'|'b\.safetensors', 'a\.pth'"):
        open_weights(tmp_path)
    (tmp_path / "model.weights.h5").write_bytes(b"")
    assert weights_path(tmp_path) == tmp_path / "model.weights.h5"


def test_an_empty_folder_or_no_file(tmp_path):
    with pytest.raises(WeightsError, match="there are: none"):
        open_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No file or folder '.*nothing\.pth'\.$"):
        open_weights(tmp_path / "nothing.pth")


def test_a_name_without_its_ending(tmp_path, official):
    write_pth(tmp_path / "a[1].pth", official)
    for name in (open_weights, named):
        with pytest.raises(FileNotFoundError, match=r"There is '.*a\[1\]\.pth'\."):
            name(tmp_path / "a[1]")


def test_the_name_of_a_shipped_model_is_no_path():
    """Who gives it where a path is wanted is told what takes it."""
    with pytest.raises(FileNotFoundError, match=r"ships with the package: RWKV\.from_preset\('finch-jargon'\)"):
        open_weights("finch-jargon")


def test_a_config_that_is_none_is_an_error_of_weights(tmp_path):
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file.create_group("layers/backbone")
    (tmp_path / "config.json").write_text('{"model": ' + "[" * 70 + "]" * 70 + "}")
    with pytest.raises(WeightsError, match=r"in each other\. A model's config\.json is wanted\."):
        open_weights(tmp_path)


@pytest.mark.parametrize("start, kind", [(b"ggml\1\0\0\0", "a GGML file"), (b"import os\n", "no weight file")])
def test_other_formats_are_named(tmp_path, start, kind):
    (tmp_path / "a").write_bytes(start * 4)
    with pytest.raises(WeightsError, match=kind):
        open_weights(tmp_path / "a")


@pytest.mark.parametrize("vocab_size, epsilon", [(16, 1e-5), (99, 64e-5), (None, 64e-5)])
def test_the_shapes_win_over_a_config_beside_them(tmp_path, official, caplog, vocab_size, epsilon):
    """Only the two epsilons, which no weight file holds, come from it, and only if it is for these weights."""
    write_pth(tmp_path / "a.pth", official)
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        keys = checkpoint.config.to_dict()
    assert not caplog.records
    text = json.dumps({**keys, "vocab_size": vocab_size, "group_norm_epsilon": 1e-5, "dtype": "float32"})
    (tmp_path / "config.json").write_text(text)
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        assert checkpoint.config.to_dict() == {**keys, "group_norm_epsilon": epsilon}
    assert ["Not used" in record.message for record in caplog.records] == [True] * (vocab_size != 16)


@pytest.mark.parametrize("content", ["other", "link", "huge"])
def test_hdf5_files_that_are_no_weights(tmp_path, content):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        if content == "other":
            file["layers/dense/vars/0"] = np.zeros(3)
        elif content == "link":
            file["layers/time_mix/dense_xw/vars/0"] = np.zeros(3)
            file["layers/channel_mix/vars/0"] = h5py.ExternalLink("/etc/hostname", "/")
        else:
            file["layers/channel_mix/vars/0"] = np.zeros(3)
            file.create_dataset(
                "layers/time_mix/dense_xw/vars/0", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip"
            )
    with pytest.raises(WeightsError, match="not those of an RWKV" if content == "other" else "is a link|as one piece"):
        open_weights(path)


PEAK = """
    import resource, sys
    import numpy as np
    from bert4keras_rwkv.weights import open_weights

    kept = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_weights(sys.argv[1]) as tensors:
        kept = {name: tensors[name] for name in tensors}
        total = tensors.nbytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    print((peak - before) * unit / total)
"""


@pytest.mark.parametrize("writer", [write_pth, write_safetensors])
def test_reading_never_holds_the_file_twice(tmp_path, writer):
    """Peak growth over the bytes of all tensors is 1 and a little; a mapped file beside the arrays would make it 2."""
    array = np.ones((1024, 1024), np.float32)
    writer(tmp_path / "a", {f"t{i}": array for i in range(32)})
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / "a")]
    assert float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 1.25


def test_a_note_called_vocabulary_is_no_vocabulary(tmp_path, official):
    """The metadata of a safetensors file are anybody's words."""
    save_file(official, tmp_path / "a.safetensors", {"vocabulary": "World"})
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.tokenizer is None
