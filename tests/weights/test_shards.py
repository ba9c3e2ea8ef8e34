"""Weights in several files are one model, and whatever is wrong with their index is said in one message."""

import json
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth
from bert4keras_rwkv.weights.checkpoint import open_checkpoint, weights_path
from bert4keras_rwkv.weights.shards import weight_map

pytestmark = pytest.mark.backend_free


def split(folder, official, container="safetensors"):
    """Write a folder with two shards and their index; returns the index."""
    folder.mkdir(exist_ok=True)
    stem, suffix = ("model", ".safetensors") if container == "safetensors" else ("pytorch_model", ".bin")
    files = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    names = list(official)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, part in zip(files, parts, strict=True):
        arrays = {name: official[name] for name in part}
        save_file(arrays, folder / file) if suffix == ".safetensors" else write_pth(folder / file, arrays)
    index = folder / f"{stem}{suffix}.index.json"
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_shards_are_one_model(tmp_path, official, same, container):
    """By the folder or by the index, under the names of Hugging Face or under official ones."""
    theirs = {
        name.replace("blocks.", "rwkv.blocks.").replace(".att.", ".attention."): a for name, a in official.items()
    }
    theirs = {name.replace(".ffn.", ".feed_forward.").replace(".ln0.", ".pre_ln."): a for name, a in theirs.items()}
    theirs["rwkv.embeddings.weight"] = theirs.pop("emb.weight")
    for folder, arrays, kind in (("a", official, "sharded"), ("b", theirs, "hf")):
        index = split(tmp_path / folder, arrays, container)
        for path in (tmp_path / folder, index):
            with open_checkpoint(path) as found:
                tensors = found.tensors
                assert found.format.name == kind
                assert {name.replace("rwkv.ln_out", "ln_out") for name in tensors} == set(official)
                for name in official:
                    np.testing.assert_array_equal(tensors[name], official[name])


def test_a_whole_file_comes_before_shards(tmp_path, official):
    """As `transformers` chooses."""
    index = split(tmp_path, official)
    assert weights_path(tmp_path) == index
    save_file(official, tmp_path / "model.safetensors")
    assert weights_path(tmp_path) == tmp_path / "model.safetensors"


def test_every_problem_is_in_one_message(tmp_path, official):
    """A name that is not in its shard, one that the index puts elsewhere, one it does not know, and a missing shard."""
    index = split(tmp_path, official)
    said = json.loads(index.read_text())
    first = said["weight_map"]["emb.weight"]
    said["weight_map"] |= {"lost": first, "far": "third.safetensors"}
    said["weight_map"]["emb.weight"] = said["weight_map"]["head.weight"]
    del said["weight_map"]["blocks.0.ln0.bias"]
    index.write_text(json.dumps(said))
    with pytest.raises(WeightsError) as error:
        open_weights(tmp_path)
    for line in (
        "the shard 'third.safetensors' is missing",
        f"'{first}' lacks 'lost'",
        f"'{first}' holds 'blocks.0.ln0.bias', which is nowhere by the index",
        f"'{first}' holds 'emb.weight', which is in '{said['weight_map']['head.weight']}' by the index",
        f"'{said['weight_map']['head.weight']}' lacks 'emb.weight'",
    ):
        assert line in str(error.value)


def test_a_tensor_in_two_shards(tmp_path, official):
    index = split(tmp_path, official)
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    second = dict(list(official.items())[len(official) // 2 :])
    save_file({**second, "emb.weight": official["emb.weight"]}, tmp_path / shards[1])
    with pytest.raises(
        WeightsError, match=rf"'{shards[1]}' holds 'emb.weight', which is in '{shards[0]}' by the index"
    ):
        open_weights(tmp_path)


def test_a_damaged_shard_is_named(tmp_path, official):
    split(tmp_path, official)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"(?s)00001.*header claims.*00002-of-00002\.safetensors' is neither"):
        open_weights(tmp_path)


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/passwd", "a\\b", "C:a", "..", "", None, 3, ["a"], {"a": 1}])
def test_shards_lie_beside_their_index(tmp_path, file):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"emb.weight": file}}))
    with pytest.raises(WeightsError, match="is no name of a file beside it"):
        open_weights(index)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "loop", "link", "."])
def test_a_shard_is_no_link_out_of_its_folder(tmp_path, official, target):
    """Nor one that leads nowhere; in another folder of the same file tree either."""
    index = split(tmp_path / "model", official)
    write_pth(tmp_path / "outside", official)
    first = sorted(set(json.loads(index.read_text())["weight_map"].values()))[0]
    os.symlink(tmp_path / "outside", tmp_path / "model/link")
    (tmp_path / "model" / first).unlink()
    os.symlink(first if target == "loop" else target, tmp_path / "model" / first)
    with pytest.raises(WeightsError, match=r"is a link out of its folder|cannot be opened"):
        open_weights(index)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_the_cache_of_hugging_face(tmp_path, official):
    """There every file of a model, its index too, is a link to one folder of contents."""
    split(tmp_path / "blobs", official)
    (tmp_path / "snapshots/a").mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "blobs").iterdir())):
        blob = file.rename(file.with_name(f"blob{number}"))
        os.symlink(f"../../blobs/{blob.name}", tmp_path / "snapshots/a" / file.name)
    with open_weights(tmp_path / "snapshots/a") as tensors:
        assert set(tensors) == set(official)


def test_an_index_that_names_itself_or_far_too_much(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"emb.weight": index.name}}))
    with pytest.raises(WeightsError, match=r"is neither a `\.safetensors`"):
        open_weights(index)
    index.write_text(json.dumps({"weight_map": {f"a{i}": f"{i}.safetensors" for i in range(5000)}}))
    with pytest.raises(WeightsError, match="names 5000 files"):
        open_weights(index)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is no JSON"),
        (b"{" * 100_000, "is no JSON"),
        (b'{"\xff', "is no JSON"),
        (b"{}", "no 'weight_map'"),
        (b'{"weight_map": []}', "no 'weight_map'"),
        (b'{"weight_map": {}}', "no 'weight_map'"),
    ],
)
def test_an_index_that_is_none(tmp_path, content, message):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        open_weights(index)


def test_an_index_of_absurd_size_is_not_read(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    with open(index, "wb") as file:
        file.write(b"{")
        file.truncate(1 << 36)  # takes no room on the disk
    began = time.perf_counter()
    with pytest.raises(WeightsError, match="68719476736 bytes"):
        open_weights(index)
    assert time.perf_counter() - began < 1


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(JSON, st.fixed_dictionaries({"weight_map": JSON})), st.booleans())
def test_any_json_is_an_index_or_an_error(tmp_path_factory, content, several):
    index = tmp_path_factory.getbasetemp() / "index.json"
    index.write_text(json.dumps(content))
    try:
        found = weight_map(index, several)
    except WeightsError:
        return
    assert found and found == content["weight_map"]
