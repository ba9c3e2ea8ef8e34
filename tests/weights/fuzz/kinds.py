"""Every kind of file that the package reads: how a sample of it is made, and all that is done to one."""

import json
import os
import re
import struct
import tempfile
from collections import namedtuple
from functools import cache, partial
from pathlib import Path

import gguf
import h5py
import numpy as np

from bert4keras_rwkv.cli.info import part_of
from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.data.binidx import Binidx, write_binidx
from bert4keras_rwkv.data.records import RecordFile, write_records
from bert4keras_rwkv.data.sources import parts_of, read_jsonl, read_text
from bert4keras_rwkv.evaluation.lambada import read_lambada
from bert4keras_rwkv.packing import Scheme, pack
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.tokenizers.find import find_tokenizer, load_tokenizer
from bert4keras_rwkv.tokenizers.pile import END, _alphabet
from bert4keras_rwkv.weights import open_weights, write_keras_h5, write_safetensors
from bert4keras_rwkv.weights.adapters import OWN, read_adapter
from bert4keras_rwkv.weights.checkpoint import open_checkpoint
from bert4keras_rwkv.weights.formats.keras_h5 import write_preset
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from bert4keras_rwkv.weights.packed import Described, as_packed, packed_tensor
from bert4keras_rwkv.weights.states import read_state
from bert4keras_rwkv.weights.summary import summarise
from bert4keras_rwkv.weights.tensors import Tensors, array_tensor, as_tensors
from tests.official import VERSIONS, official_weights
from tests.weights.formats import test_bert4keras3, test_keras_hub, test_rwkv_cpp
from tests.weights.formats.gguf_files import SIZES, config_for, small_tokenizer
from tests.weights.fuzz import hdf5, pickles
from tests.weights.fuzz.values import EDGES, TEXTS, changed, damaged, edge, json_bytes, strange

# make(rng, folder, path of a pipe) writes a sample and returns its path; read: functions of that path, each of which
# may refuse it. own: whether every byte that comes out must be one of the file.
Kind = namedtuple("Kind", "make read own", defaults=(False,))
SMALL = {"layers": 2, "heads": 2, "head_size": 4, "ids": 8}
CONFIG = RWKVConfig.from_shapes(
    {name: a.shape for name, a in official_weights("6", np.random.default_rng(7), **SMALL).items()}
)


@cache
def weights(version="6"):
    return official_weights(version, np.random.default_rng(7), **SMALL)


def read_weights(path):
    """All that loading does but for a backend. Returns the arrays."""
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config
        return {name: np.asarray(array) for name, array in checkpoint.tensors.items()}


def read_packed(path):
    """What `quantization='keep'` reads: matrices as they are packed."""
    with open_checkpoint(path) as checkpoint:
        entries = as_packed(checkpoint.tensors).entries().values()
        return [array for entry in entries if entry.packed for array in entry.packed.read().values()]


def read_own(path):
    """The same with its config given."""
    with open_weights(path, CONFIG) as tensors:
        return {name: np.asarray(tensors[name]) for name in tensors}


def read_parts(path):
    return json.dumps(part_of(path))


MODEL = (read_weights, summarise, read_parts)
PART = (read_parts, read_adapter, partial(read_state, config=CONFIG), RWKVState.load)


def written(path, data):
    path.write_bytes(data)
    return path


def a_zip(rng, folder, pipe):
    return written(folder / "a.pth", pickles.zipped(rng))


def a_legacy(rng, folder, pipe):
    return written(folder / "a.pth", pickles.legacy(rng))


# safetensors and what lies in them


def stored(rng, arrays, metadata=None):
    """The bytes of a safetensors file whose header says something else in a place or two."""
    names = {"float32": "F32", "float16": "F16"}
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, array in arrays.items():
        places = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": names[str(array.dtype)], "shape": list(array.shape), "data_offsets": places}
        data += array.tobytes()
    for _ in range(rng.randrange(3)):
        header = changed(rng, header)
    text = json_bytes(rng, header)
    size = edge(rng) & 0xFFFFFFFFFFFFFFFF if rng.random() < 0.03 else len(text)
    return struct.pack("<Q", size) + text + (data if rng.random() < 0.9 else data[: rng.randrange(len(data) + 1)])


def safetensors(rng, folder, pipe):
    arrays = dict(weights(rng.choice(VERSIONS)))
    for _ in range(rng.randrange(3)):
        name = rng.choice(list(arrays))
        shape = [rng.randrange(5) for _ in range(rng.randrange(5))]
        arrays[rng.choice((name, name, rng.choice(TEXTS)))] = np.ones(shape, "f4")
    return written(folder / "a.safetensors", stored(rng, arrays))


def own_state(rng, folder, pipe):
    state = RWKVState.zeros(CONFIG)
    said = {"format": "bert4keras_rwkv.state", "version": "1", "layout": "[key, value]", "model": "rwkv6"}
    arrays = {"wkv": state.wkv, "shift": state.shift}
    if rng.random() < 0.3:
        arrays[rng.choice(list(arrays))] = np.ones([rng.randrange(4) for _ in range(rng.randrange(7))], "f4")
    return written(folder / "a.state", stored(rng, arrays, changed(rng, said) if rng.random() < 0.3 else said))


def adapter(rng, folder, pipe):
    config = changed(rng, CONFIG.to_dict()) if rng.random() < 0.5 else CONFIG.to_dict()
    said = {"config": config, "shift": True, "alpha": 4.0, "rank": 2}
    said = json_bytes(rng, changed(rng, said) if rng.random() < 0.5 else said).decode("utf-8", "replace")
    names = ["blocks/0/time_mix/key/lora_a", "blocks/0/time_mix/key/lora_b", "start/wkv", "start/shift", "weights/head"]
    arrays = {name: np.ones([rng.randrange(4) for _ in range(rng.choice((2, 2, 2, 0, 1, 3)))], "f4") for name in names}
    for name in rng.sample(names, rng.randrange(4)):
        del arrays[name]
    metadata = {"format": OWN, "version": "1", "adapter": said}
    return written(
        folder / "a.safetensors", stored(rng, arrays, changed(rng, metadata) if rng.random() < 0.2 else metadata)
    )


def lora(rng, folder, pipe):
    ends = ("lora_A", "lora_B", "lora.0", "lora.1", "disha", "init_lora_A", "init_lora_B", "weight", "time_state")
    arrays = {}
    for _ in range(rng.randrange(1, 6)):
        shape = [rng.randrange(5) for _ in range(rng.choice((2, 2, 3, 0, 5)))]
        arrays[f"blocks.{rng.randrange(2)}.att.{rng.choice(('key.', ''))}{rng.choice(ends)}"] = np.ones(shape, "f4")
    return written(folder / rng.choice(("a.st", "a.safetensors")), stored(rng, arrays))


def index(rng, folder, pipe):
    """Shards, and an index that names others."""
    arrays, suffix = weights(), rng.choice((".safetensors", ".weights"))
    names = [f"{i}.safetensors" for i in range(3)]
    places = {name: names[i % 3] for i, name in enumerate(arrays)}
    for file in names:
        write_safetensors(folder / file, {name: arrays[name] for name, place in places.items() if place == file})
    what = rng.randrange(4)
    if what == 0:
        (folder / names[0]).unlink()
        os.symlink(
            rng.choice((pipe, "/etc/hostname", "/dev/zero", names[0], names[1], "a.safetensors.index.json", ".")),
            folder / names[0],
        )
    if what == 1:
        others = (
            "../0.safetensors",
            "/etc/hostname",
            str(folder / names[1]),
            "a.safetensors.index.json",
            ".",
            "pipe",
            "a\\b",
        )
        places[rng.choice(list(places))] = rng.choice(others)
    said = {"metadata": {"total_size": 1}, "weight_map": places}
    said = changed(rng, said) if rng.random() < 0.5 else said
    return written(folder / f"a{suffix}.{'index.json' if suffix != '.weights' else 'json'}", json_bytes(rng, said))


# HDF5


@cache
def h5_bytes(kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.weights.h5"
        if kind == "own":
            write_keras_h5(path, weights(), CONFIG)
        elif kind == "bert4keras3":
            test_bert4keras3.saved(weights(), path)
        else:
            test_keras_hub.save(path, official_weights("7", np.random.default_rng(7), layers=3))
        return path.read_bytes()


def an_h5(rng, folder, pipe):
    kind = rng.choice(("own", "bert4keras3", "hub"))
    (folder / "config.json").write_text(
        json.dumps(changed(rng, CONFIG.to_dict()) if rng.random() < 0.2 else CONFIG.to_dict())
    )
    path = written(folder / "a.weights.h5", h5_bytes(kind))
    with h5py.File(path, "r+") as file:
        for _ in range(rng.randrange(3)):
            hdf5.change(rng, file, pipe)
    data = path.read_bytes()
    return path if rng.random() < 0.5 else written(path, damaged(rng, data))


def packed_weights():
    """Weights whose matrices are packed, some with least values."""
    found = as_tensors(weights()).entries()
    for number, name in enumerate(name for name in found if re.search(r"\.(key|value|output)\.weight$", name)):
        scheme = (Scheme(8), Scheme(4), Scheme(4, least=False), Scheme(16))[number % 4]
        parts = {part: array_tensor(array) for part, array in pack(found[name].read(), scheme).items()}
        outputs, inputs = found[name].shape
        found[name] = packed_tensor(name, outputs, Described(scheme, inputs), parts)
    return Tensors(found)


@cache
def packed_bytes():
    """The files of a preset of them: its weights, and what its config.json says."""
    with tempfile.TemporaryDirectory() as folder:
        write_preset(Path(folder) / "a", packed_weights(), CONFIG)
        config = json.loads((Path(folder) / "a/config.json").read_text())
        return (Path(folder) / "a/model.weights.h5").read_bytes(), config


def a_packed(rng, folder, pipe):
    data, said = packed_bytes()
    for _ in range(rng.randrange(3)):
        group = rng.randrange(len(said["quantization"]))
        groups = [changed(rng, one) if i == group else one for i, one in enumerate(said["quantization"])]
        said = {**said, "quantization": rng.choice((groups, groups + groups[:1], edge(rng)))}
        if not isinstance(said["quantization"], list) or not said["quantization"]:
            break
    (folder / "config.json").write_bytes(json_bytes(rng, said) if rng.random() < 0.2 else json.dumps(said).encode())
    path = written(folder / "model.weights.h5", data)
    with h5py.File(path, "r+") as file:
        for _ in range(rng.randrange(2)):
            hdf5.change(rng, file, pipe)
    data = path.read_bytes()
    return path if rng.random() < 0.5 else written(path, damaged(rng, data))


# GGUF and rwkv.cpp


@cache
def gguf_parts(version):
    """(keys with their values, tensors, data) of a good file."""
    import tempfile

    arrays = official_weights(version, np.random.default_rng(7), **SIZES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        write_gguf(
            path,
            arrays,
            config_for(arrays),
            "float16" if version == "6" else "float32",
            small_tokenizer() if version == "6" else None,
        )
        read = gguf.GGUFReader(path)
        keys = [
            (name, b"".join(np.asarray(part).tobytes() for part in field.parts[2:]))
            for name, field in read.fields.items()
        ]
        tensors = [
            (t.name, [int(n) for n in t.shape], int(t.tensor_type), int(t.data_offset - read.data_offset))
            for t in read.tensors
        ]
        return [key for key in keys if not key[0].startswith("GGUF.")], tensors, path.read_bytes()[read.data_offset :]


def sized(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def u64(number):
    return number & 0xFFFFFFFFFFFFFFFF


def key_value(rng):
    """A kind of value and its bytes."""
    kind = rng.randrange(14)
    if kind == 9:
        inner = rng.choice((0, 4, 7, 8, 9, 12, 13))
        count = u64(edge(rng)) if rng.random() < 0.3 else rng.randrange(4)
        return struct.pack("<IIQ", 9, inner, count) + (sized("a") * 3 if inner == 8 else bytes(64))
    return struct.pack("<I", kind) + (sized(rng.choice(TEXTS)) if kind == 8 else struct.pack("<Q", u64(edge(rng))))


def a_gguf(rng, folder, pipe):
    keys, tensors, data = gguf_parts(rng.choice("67"))
    keys, tensors = list(keys), [[name, list(dims), kind, offset] for name, dims, kind, offset in tensors]
    for _ in range(rng.randrange(4)):
        what = rng.randrange(6)
        if what == 0:
            keys[rng.randrange(len(keys))] = (rng.choice(keys)[0], key_value(rng))
        elif what == 1:
            keys.append((rng.choice(("general.alignment", "split.count", rng.choice(TEXTS))), key_value(rng)))
        elif what == 2:
            tensor = rng.choice(tensors)
            place = rng.randrange(len(tensor[1]))
            tensor[1][place] = rng.choice((u64(edge(rng)), *tensor[1]))
        elif what == 3:
            rng.choice(tensors)[3] = rng.choice((u64(edge(rng)), rng.choice(tensors)[3]))
        elif what == 4:
            rng.choice(tensors)[2] = rng.choice((*range(40), 255, 1 << 31))
        else:
            tensor = rng.choice(tensors)
            tensor[0], tensor[1] = rng.choice(
                (
                    (rng.choice(TEXTS), tensor[1]),
                    (rng.choice(tensors)[0], tensor[1]),
                    (tensor[0], tensor[1][:-1] or [1] * 5),
                )
            )
    counts = [len(tensors), len(keys)]
    if rng.random() < 0.1:
        counts[rng.randrange(2)] = u64(edge(rng))
    content = struct.pack("<4sIQQ", b"GGUF", rng.choice((3,) * 20 + (2, 1, 50331648)), *counts)
    content += b"".join(sized(name) + value for name, value in keys)
    for name, dims, kind, offset in tensors:
        content += sized(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    content += bytes(-len(content) % 32) + data
    return written(folder / "a.gguf", content if rng.random() < 0.8 else damaged(rng, content))


@cache
def cpp_bytes(version):
    return test_rwkv_cpp.file_of(version, weights(version))


def rwkv_cpp(rng, folder, pipe):
    data = bytearray(cpp_bytes(rng.choice(VERSIONS)))
    for _ in range(rng.randrange(4)):
        at = rng.choice(
            (
                4,
                8,
                12,
                16,
                24,
                28,
                32,
                36,
                data.find(b"blocks.", rng.randrange(len(data))) - rng.choice((4, 8, 12, 16, 20)),
            )
        )
        struct.pack_into("<i", data, max(at, 0), rng.choice((-1, 0, 1, 2, 3, 4, 8, 9, 1 << 30, (1 << 31) - 1)))
    return written(folder / "a.bin", bytes(data) if rng.random() < 0.7 else damaged(rng, bytes(data)))


# Texts


def config(rng, folder, pipe):
    foreign = {
        "model_type": "rwkv6",
        "architectures": ["Rwkv6ForCausalLM"],
        "head_size": 4,
        "head_size_divisor": 8,
        "hidden_size": 8,
    }
    said = rng.choice((CONFIG.to_dict(), CONFIG.to_dict() | foreign))
    for _ in range(rng.randrange(1, 3)):
        said = changed(rng, said)
    write_safetensors(folder / "model.safetensors", weights())
    return written(folder / "config.json", json_bytes(rng, said))


def beside(path):
    """A config beside weights, for what it adds to them."""
    return read_weights(path.with_name("model.safetensors"))


LITERALS = (
    "b'a'",
    "'a'",
    '"\\\\"',
    "'\\x41'",
    "b'\\xff'",
    "((((",
    "-" * 99999,
    "1" * 9999,
    "'a' 'b'",
    "'\\N{DASH}'",
    "'\\d'",
    "[" * 500 + "]" * 500,
    "'" + "x" * 70_000 + "'",
    "'\\ud800'",
    "b'\u00e9'",
    "f'{1}'",
    "'a'*9**9",
    "''",
    "b'\\u1234'",
    "'\\400'",
)


def vocabulary(rng, folder, pipe):
    lines = [f"{byte + 1} {bytes([byte])!r} 1".encode() for byte in range(256)]
    if rng.random() < 0.3:
        lines = [b"b'<s>'", *(repr(bytes([byte])).encode() for byte in range(256))]
    for _ in range(rng.randrange(4)):
        number = rng.choice((257, 300, 1, 0, -1, 65535, (1 << 31) - 1, 1 << 40, "9" * 5000, "\u0663"))
        literal = rng.choice(LITERALS)
        line = rng.choice((f"{number} {literal} {rng.choice((1, 2, 3, -1, 1 << 40))}", literal, rng.choice(TEXTS)))
        lines.insert(rng.randrange(len(lines) + 1), line.encode("utf-8", "surrogatepass"))
    return written(folder / "vocab.txt", rng.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines))


def use_vocabulary(path):
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("a b\n"))
    tokenizer.without_text(300)
    return find_tokenizer(path.parent, 300)


def tokenizer_json(rng, folder, pipe):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": 0, "content": "<|endoftext|>", "special": True}
    said = {
        "version": "1.0",
        "added_tokens": [end | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {one: i for i, one in enumerate((END, *_alphabet()))}, "merges": []},
    }
    if rng.random() < 0.3:
        said = {"rows": rng.choice((list(range(257)), strange(rng))), "tokenizer": said}
    for _ in range(rng.randrange(3)):
        said = changed(rng, said, 0.3)
    return written(folder / "tokenizer.json", json_bytes(rng, said))


def jsonl(rng, folder, pipe):
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    lines = [
        json_bytes(rng, changed(rng, rng.choice(({"text": "a b", "label": "b"}, turns))))
        for _ in range(rng.randrange(5))
    ]
    return written(folder / "a.jsonl", b"\n".join(lines))


def read_lines(path):
    return [parts_of(item) for item in read_jsonl(path)]


def records(rng, folder, pipe):
    import bert4keras_rwkv.data.records as module

    write_records(folder / "a.tfrecord", [np.arange(3), np.arange(200)])
    data = bytearray((folder / "a.tfrecord").read_bytes())
    if rng.random() < 0.1:
        return folder / "a.tfrecord"
    if rng.random() < 0.3:
        return written(folder / "a.tfrecord", damaged(rng, bytes(data)))
    body = damaged(rng, bytes(data[12:-4]))  # under a good checksum
    head = struct.pack("<Q", len(body))
    content = b"".join((head, module.FOOT.pack(module._masked(head)), body, module.FOOT.pack(module._masked(body))))
    return written(folder / "a.tfrecord", content)


def read_all(reader, path):
    documents = reader(path)
    return [documents[i] for i in range(len(documents))]


def binidx(rng, folder, pipe):
    write_binidx(folder / "a", [np.arange(3), np.arange(0), np.arange(200)])
    data = bytearray((folder / "a.idx").read_bytes())
    for _ in range(rng.randrange(4)):
        at = rng.choice((9, 18, 26, 34, 38, 46, 54, 62, 70))
        struct.pack_into(
            "<q", data, at, rng.choice((-1, 0, 1, 3, 8, *(one for one in EDGES if one < 1 << 63), -(1 << 63)))
        )
    written(
        folder / "a.bin",
        damaged(rng, (folder / "a.bin").read_bytes()) if rng.random() < 0.3 else (folder / "a.bin").read_bytes(),
    )
    return written(folder / "a.idx", bytes(data) if rng.random() < 0.7 else damaged(rng, bytes(data)))


def plain(rng, folder, pipe):
    return written(folder / "a.txt", damaged(rng, "a\n---\né\r\nb\n".encode() * 5))


KINDS = {
    "zip": Kind(a_zip, (*MODEL, *PART), True),
    "legacy": Kind(a_legacy, (*MODEL, *PART), True),
    "safetensors": Kind(safetensors, (*MODEL, *PART)),
    "state": Kind(own_state, PART),
    "adapter": Kind(adapter, PART),
    "lora": Kind(lora, PART),
    "index": Kind(index, (read_weights, summarise)),
    "hdf5": Kind(an_h5, (read_weights, read_own, summarise)),
    "packed": Kind(a_packed, (read_weights, read_packed, summarise)),
    "gguf": Kind(a_gguf, (read_weights, read_packed, summarise)),
    "rwkv_cpp": Kind(rwkv_cpp, (read_weights, read_packed, summarise)),
    "config": Kind(config, (RWKVConfig.from_json, beside)),
    "vocabulary": Kind(vocabulary, (use_vocabulary, RWKV_TOKENIZER)),
    "tokenizer": Kind(tokenizer_json, (use_vocabulary,)),
    "jsonl": Kind(jsonl, (read_lines, lambda path: list(read_lambada(path)))),
    "text": Kind(plain, (lambda path: list(read_text(path, "---")),)),
    "records": Kind(records, (partial(read_all, RecordFile),)),
    "binidx": Kind(binidx, (partial(read_all, Binidx),)),
}
