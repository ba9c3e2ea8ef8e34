"""A GGUF header is what the library's reader says it is, and damage is one kind of error, at once."""

import struct
import tempfile
import time
from contextlib import closing, suppress

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.weights import WeightsError, open_weights
from bert4keras_rwkv.weights.binary_file import BinaryFile
from bert4keras_rwkv.weights.formats.llama_cpp.header import Stored, read_header
from bert4keras_rwkv.weights.formats.llama_cpp.names import ARCHITECTURES
from bert4keras_rwkv.weights.formats.llama_cpp.read import open_gguf
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from tests.official import official_weights
from tests.weights.formats.gguf_files import config_for, finish, small_tokenizer

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("layout", [">", "<"])
def test_numbers_in_the_header(tmp_path, layout):
    """The keys are what the library's reader says, for every kind of value; big-endian files are refused by name."""
    endian = gguf.GGUFEndian.BIG if layout == ">" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "rwkv7", endianess=endian)
    kinds = gguf.GGUFValueType
    values = {
        kinds.UINT8: 200, kinds.INT8: -3, kinds.UINT16: 60000, kinds.INT16: -300, kinds.UINT32: 4_000_000_000,
        kinds.INT32: -70000, kinds.UINT64: 1 << 63, kinds.INT64: -(1 << 60), kinds.FLOAT32: 0.25, kinds.FLOAT64: 0.1,
        kinds.BOOL: True, kinds.STRING: "é",
    }  # fmt: skip
    for kind, value in values.items():
        writer.add_key_value(f"a.{kind.name}", value, kind)
        writer.add_key_value(f"b.{kind.name}", [value] * 3, kinds.ARRAY, kind)
    writer.add_custom_alignment(64)
    writer.add_tensor("some", np.arange(6, dtype=np.float32).reshape(2, 3))
    finish(writer)
    if layout == ">":
        with (
            pytest.raises(WeightsError, match="for a big-endian machine"),
            closing(BinaryFile(tmp_path / "a.gguf")) as file,
        ):
            read_header(file, ARCHITECTURES)
        return
    with closing(BinaryFile(tmp_path / "a.gguf")) as file:
        found, placed = read_header(file, ARCHITECTURES)
    expected = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    texts = {"b.STRING": ["é".encode()] * 3, "a.STRING": "é".encode(), "general.architecture": b"rwkv7"}
    assert found == {key: value for key, value in expected.items() if not key.startswith("GGUF.")} | texts
    (tensor,) = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert placed["some"] == Stored((2, 3), gguf.GGMLQuantizationType.F32, tensor.data_offset)


def header(architecture=b"rwkv6", keys=(), tensors=(), data=b"", counts=None, version=3):
    """The bytes of a GGUF file. keys: (name, kind, bytes of the value); tensors: (name, dims, kind, offset)."""
    keys = [(b"general.architecture", 8, text_of(architecture)), *keys]
    content = b"".join(text_of(name) + struct.pack("<I", kind) + value for name, kind, value in keys)
    for name, dims, kind, offset in tensors:
        content += text_of(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    content = struct.pack("<4sIQQ", b"GGUF", version, *(counts or (len(tensors), len(keys)))) + content
    return content + bytes(-len(content) % 32) + data


def text_of(text):
    return struct.pack("<Q", len(text)) + text


HUGE = 1 << 62
BAD = {
    "another architecture": (header(b"llama"), "architecture 'llama'"),
    "another architecture with damage behind it": (header(b"llama", counts=(HUGE, HUGE)), "architecture 'llama'"),
    "a hybrid": (header(b"rwkv6qwen2"), "architecture 'rwkv6qwen2'"),
    "no architecture": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "no architecture"),
    "an architecture that is a number": (header(keys=[(b"general.architecture", 4, bytes(4))]), "twice"),
    "only the magic": (b"GGUF", "asked for"),
    "an old version": (header(version=1), "of version 1"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "absurd count of tensors": (header(counts=(HUGE, 1)), "'' twice"),
    "absurd count of keys": (header(counts=(0, HUGE)), "the key '' twice"),
    "absurd length of a name": (header(counts=(1, 1)).rstrip(b"\0") + struct.pack("<Q", HUGE), "claims a text"),
    "absurd length of a text": (header(keys=[(b"a", 8, struct.pack("<Q", HUGE))]), "claims a text"),
    "absurd length of a list": (header(keys=[(b"a", 9, struct.pack("<IQ", 0, HUGE))]), f"{HUGE} numbers"),
    "absurd length of a list of texts": (header(keys=[(b"a", 9, struct.pack("<IQ", 8, HUGE))]), "asked for"),
    "lists of lists": (header(keys=[(b"a", 9, struct.pack("<IQ", 9, 1) * 5000)]), "not one of this format"),
    "unknown kind of value": (header(keys=[(b"a", 99, b"")]), "not one of this format"),
    "a name that is no text": (header(keys=[(b"\xff", 0, b"a")]), "not one of this format"),
    "unknown type": (header(tensors=[(b"a", [32], 4444, 0)], data=bytes(128)), "not one of this format"),
    "dropped type": (header(tensors=[(b"a", [32], 4, 0)], data=bytes(128)), "not one of this format"),
    "no dimensions": (header(tensors=[(b"a", [], 0, 0)], data=bytes(128)), "0 dimensions"),
    "many dimensions": (header(tensors=[(b"a", [1] * 9, 0, 0)], data=bytes(128)), "9 dimensions"),
    "absurd sizes": (header(tensors=[(b"a", [HUGE, HUGE], 0, 0)], data=bytes(128)), "shape"),
    "sizes that overflow to nothing": (header(tensors=[(b"a", [1 << 32, 1 << 32], 0, 0)], data=bytes(128)), "shape"),
    "a size of 0": (header(tensors=[(b"a", [0], 0, 0)], data=bytes(128)), "shape"),
    "twice": (header(tensors=[(b"a", [1], 0, 0)] * 2, data=bytes(128)), "twice"),
    "alignment": (header(keys=[(b"general.alignment", 4, struct.pack("<I", 3))]), "alignment is 3"),
    "no layers": (header(tensors=[(b"a", [1], 0, 0)], data=bytes(128)), "nothing is named 'output.weight'"),
    "a layer that is no number": (header(tensors=[(b"blk.x.a", [1], 0, 0)], data=bytes(128)), "'blk.0...'"),
    "an absurd layer": (header(tensors=[(b"blk.99999999999.a", [1], 0, 0)], data=bytes(128)), "'blk.0...'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_named(tmp_path, name):
    """One kind of error, at once, and nothing is allocated that the header claims."""
    content, message = BAD[name]
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        open_gguf(tmp_path / "bad.gguf")


@pytest.fixture(scope="module")
def atomic_file():
    """The bytes of a small file with quantised tensors, and where its header ends."""
    rng = np.random.default_rng(1)
    arrays = official_weights("7", rng, heads=1, head_size=32, layers=2, ids=260, ffn=32)
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(f"{folder}/a.gguf", arrays, config_for(arrays), "q8_0", small_tokenizer())
        with open(f"{folder}/a.gguf", "rb") as file:
            content = file.read()
        start = min(tensor.data_offset for tensor in gguf.GGUFReader(f"{folder}/a.gguf").tensors)
    return content, start


def read_all(content):
    """Open these bytes as a file and read every tensor; how long it took."""
    began = time.process_time()
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with suppress(WeightsError), open_gguf(file.name) as tensors:
            list(tensors.items())
    return time.process_time() - began


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_is_one_kind_of_error(atomic_file, data):
    """Whatever bytes change and wherever the file ends: all is read, or a `WeightsError` comes, within a second."""
    content, start = bytearray(atomic_file[0]), atomic_file[1]
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, start - 1), st.integers(0, 255)), max_size=3)):
        content[place] = byte
    for place in data.draw(st.lists(st.integers(start, len(content) - 1), max_size=3)):
        content[place] = 255
    assert read_all(content[: data.draw(st.integers(0, len(content)))]) < 1


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_absurd_numbers_are_one_kind_of_error(atomic_file, data):
    """Any eight bytes of the header may be a count or a size."""
    content, start = bytearray(atomic_file[0]), atomic_file[1]
    place = data.draw(st.integers(8, start - 8) | st.sampled_from(counts_in(atomic_file)))
    content[place : place + 8] = struct.pack(
        "<Q", data.draw(st.integers(0, 2**64 - 1) | st.sampled_from([HUGE, 1 << 32]))
    )
    assert read_all(content) < 1


def counts_in(whole):
    """Where the counts of tensors and keys, and the length of the list of tokens, lie."""
    tokens = whole[0].index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    return [8, 16, tokens]


def test_a_short_file_says_how_short(tmp_path, atomic_file):
    (tmp_path / "short.gguf").write_bytes(atomic_file[0][:-1000])
    with pytest.raises(WeightsError, match=r"short\.gguf.*should end at byte \d+, and it has \d+"):
        open_weights(tmp_path / "short.gguf")
