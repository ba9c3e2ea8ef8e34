"""Our reader and writer of safetensors agree with the library, and damage is one kind of error."""

import json
import struct
import tempfile
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.weights import WeightsError, open_weights, write_safetensors
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors

pytestmark = pytest.mark.backend_free


@pytest.fixture
def arrays(rng):
    """One array of each kind that matters."""
    return {
        "emb.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "half": rng.normal(size=(4,)).astype(np.float16),
        "bfloat": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "ints": np.arange(4),
        "flags": np.array([True, False]),
    }


@pytest.mark.live
def test_reads_what_the_library_writes(tmp_path, arrays, same):
    library = pytest.importorskip("safetensors.numpy")
    plain = {name: array for name, array in arrays.items() if name != "bfloat"}
    library.save_file(plain, tmp_path / "a", metadata={"format": "pt"})
    with open_weights(tmp_path / "a") as tensors:
        assert tensors.metadata == {"format": "pt"}
        same(dict(sorted(tensors.items())), dict(sorted(plain.items())))


@pytest.mark.live
def test_the_library_reads_what_we_write(tmp_path, arrays):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    write_safetensors(tmp_path / "a", arrays)
    found = library.load_file(tmp_path / "a")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert str(found[name].dtype) == f"torch.{array.dtype}"
        expected = torch.tensor(array.astype(np.float64))
        assert torch.equal(found[name].double(), expected)


def test_there_and_back_keeps_bits_and_order(tmp_path, official, same):
    write_safetensors(tmp_path / "a", official, metadata={"origin": "a test"})
    with open_weights(tmp_path / "a") as tensors:
        same(tensors, official)
        assert tensors.metadata["origin"] == "a test"


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD = {
    "no header": b"\x08\0\0\0\0\0\0\0{",
    "a header longer than the file": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": file_of(b"{nothing"),
    "deeply nested": file_of(b'{"a":' + b"[" * 100_000),
    "not an object": file_of(b"{}").replace(b"{}", b"{]"),
    "no shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "unknown dtype": file_of({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "sizes disagree": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
    "beyond the end": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
    "negative": file_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, bytes(4)),
    "fractions": file_of({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
    "text for a tensor": file_of({"a": "b"}),
    "metadata that is text": file_of({"__metadata__": "x", "a": 3}),
    "metadata that are numbers": file_of({"__metadata__": {"adapter": 3}}),
    "tensors that overlap": file_of({"a": FOUR, "b": FOUR | {"data_offsets": [3, 7]}}, bytes(8)),
    "tensors in one place": file_of({"a": FOUR, "b": FOUR}, bytes(4)),
    "a name twice": file_of(b'{"a": %b, "a": %b}' % ((json.dumps(FOUR).encode(),) * 2), bytes(4)),
    "sizes that overflow": file_of({"a": FOUR | {"shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}}, bytes(4)),
    "a name that moves the cursor": file_of({"a\x1b[2J": FOUR}, bytes(4)),
    "a name of a million letters": file_of({"a" * 1_000_000: FOUR}, bytes(4)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_named(tmp_path, name):
    (tmp_path / "bad.safetensors").write_bytes(BAD[name])
    with pytest.raises(WeightsError, match=r"bad\.safetensors") as error:
        open_safetensors(tmp_path / "bad.safetensors")
    assert len(str(error.value)) < 2000


@settings(deadline=None, max_examples=100)
@given(cut=st.integers(0, 200), changes=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=3))
def test_damage_is_one_kind_of_error(cut, changes):
    content = bytearray(file_of({"a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}}, bytes(24)))
    for place, byte in changes:
        content[place % len(content)] = byte
    with tempfile.NamedTemporaryFile() as file:
        file.write(content[:cut])
        file.flush()
        with suppress(WeightsError), open_safetensors(file.name) as tensors:
            list(tensors.items())
