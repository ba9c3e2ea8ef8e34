"""`.safetensors` files: an 8-byte length, a JSON header, the data. https://github.com/huggingface/safetensors

Read and written here rather than by the library: it maps the whole file (mapped pages count as memory) and writes
only what is in memory all at once. The format is small, and the tests compare with the library both ways.
"""

import json
import struct
from itertools import pairwise

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.untrusted import parse_json, shown
from bert4keras_rwkv.weights.binary_file import BinaryFile
from bert4keras_rwkv.weights.casting import bytes_of, cast, report
from bert4keras_rwkv.weights.folder import TEMPLATE
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, count, dtype_named, officially_named

LARGEST_HEADER = 1 << 24  # bytes, of the 100 million that the format allows; a 14B model's has 0.3 million
MOST_DIMENSIONS = 8

NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def open_safetensors(path, config=None):
    """The tensors of a `.safetensors` file under their official names, lazily. Damage is a `WeightsError`."""
    reader = BinaryFile(path)
    try:
        header, start = _header(reader)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise reader.broken("its metadata are not texts under names")
        places = {name: _place(reader, name, said) for name, said in header.items()}
        _apart(reader, places)
        entries = {
            name: reader.tensor(start + begin, shape, dtype) for name, (shape, dtype, begin, _) in places.items()
        }
        return Tensors(officially_named(entries), metadata, reader.close)
    except WeightsError as error:
        reader.close()
        raise reader.named(error) from error.__cause__


def write_safetensors(path, mapping, dtype=None, metadata=None, progress=None):
    """Write official name -> array as `.safetensors`; arguments as for `write_pth`, `metadata` a dict of texts.

    Of the `metadata` of `Tensors` the name of a template goes along.
    """
    tensors = cast(mapping, dtype)
    kept = {TEMPLATE: tensors.metadata[TEMPLATE]} if TEMPLATE in tensors.metadata else {}
    with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
        file.write(header_of(tensors, {"format": "pt"} | kept | (metadata or {})))
        for index, name in enumerate(tensors):
            for part in bytes_of(tensors, name):
                file.write(part)
            report(progress, index + 1, tensors)


def header_of(tensors, metadata=None):
    """The bytes before the data for `Tensors` in their order, padded so that the data begins at a multiple of 8."""
    names = {dtype_named(dtype): short for short, dtype in NAMES.items()}
    said = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in tensors:
        entry = tensors.entry(name)
        said[name] = {
            "dtype": names[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(said, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _header(reader):
    """The parsed header and where the data begins."""
    (size,) = struct.unpack("<Q", reader.read(8))
    if size > LARGEST_HEADER:
        raise reader.broken(f"its header claims {size} bytes")
    text = reader.read(size)
    try:
        header = parse_json(text, "its header")
    except ValueError as error:
        raise reader.broken(error) from error
    if not isinstance(header, dict):
        raise reader.broken("its header is not a JSON object")
    return header, 8 + size


def _place(reader, name, said):
    """(shape, dtype, begin, end) of what the header says of one name; both places count from the end of the header."""
    said = said if isinstance(said, dict) else {"said": said}
    shape, offsets, kind = map(said.get, ("shape", "data_offsets", "dtype"))
    plain = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and isinstance(kind, str)
    if not plain or len(shape) > MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise reader.broken(f"its header is not one of this format, it says of '{name}': {shown(said)}")
    if kind not in NAMES:
        raise WeightsError(f"'{name}' in '{reader.path}' has the dtype {shown(kind)}. Known: {', '.join(NAMES)}.")
    dtype, (begin, end) = dtype_named(NAMES[kind]), offsets
    if end - begin != count(shape) * dtype.itemsize:
        raise reader.broken(f"the header says of '{name}': {shown(said)}, which cannot be")
    return tuple(shape), dtype, begin, end


def _apart(reader, places):
    """Raise unless all tensors lie behind each other and inside the file; the format allows nothing else."""
    spans = sorted((begin, end, name) for name, (_, _, begin, end) in places.items() if begin < end)
    for before, after in pairwise(spans):
        if before[1] > after[0]:
            raise reader.broken(f"by its header '{before[2]}' and '{after[2]}' overlap")
    if spans and reader.tell() + spans[-1][1] > reader.size:
        raise reader.broken(
            f"the header says that '{spans[-1][2]}' ends {spans[-1][1]} bytes behind it, which cannot be"
        )


def is_safetensors(path, start):
    """Whether its header begins where one begins."""
    return start[8:9] == b"{"


def _write(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_safetensors(path, tensors, dtype, progress=progress)


FORMAT = Format(
    "safetensors",
    "`.safetensors` of a `.pth`",
    ("4", "5", "6", "7"),
    is_safetensors,
    open_safetensors,
    ".safetensors",
    _write,
    dialects=("hf", "fla", "st"),
    dtypes=("float32", "bfloat16", "float16", "float64"),
)
