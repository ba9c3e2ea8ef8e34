"""`.safetensors` files: an 8-byte length, a JSON header, the data. https://github.com/huggingface/safetensors

Read and written here rather than by the library: it maps the whole file (mapped pages count as memory) and writes
only what is in memory all at once. The format is small, and the tests compare with the library both ways.
"""

import json
import struct

from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.reader import Reader
from bert4keras_rwkv.weights.tensors import Tensors, count, dtype_named, officially_named
from bert4keras_rwkv.weights.write import bytes_of, cast, report
from bert4keras_rwkv.whole import whole_file

LARGEST_HEADER = 100_000_000  # the format's own limit

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
    reader = Reader(path)
    try:
        header, start = _header(reader)
        metadata = header.pop("__metadata__", {})
        entries = {name: _tensor(reader, name, said, start) for name, said in header.items()}
        return Tensors(officially_named(entries), metadata, reader.close)
    except WeightsError:
        reader.close()
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reader.close()
        raise reader.broken(f"its header is not one of this format ({type(error).__name__}, {error})") from error


def write_safetensors(path, mapping, dtype=None, metadata=None, progress=None):
    """Write official name -> array as `.safetensors`; arguments as for `write_pth`, `metadata` a dict of texts."""
    tensors = cast(mapping, dtype)
    with whole_file(path) as unfinished, open(unfinished, "wb") as file:
        file.write(header_of(tensors, {"format": "pt"} | (metadata or {})))
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
        header = json.loads(text)
    except ValueError as error:
        raise reader.broken(f"its header is not JSON, {error}") from error
    if not isinstance(header, dict):
        raise reader.broken("its header is not a JSON object")
    return header, 8 + size


def _tensor(reader, name, said, start):
    """A `Tensor` for what the header says of one name."""
    if said["dtype"] not in NAMES:
        raise WeightsError(f"'{name}' in '{reader.path}' has the dtype {said['dtype']!r}. Known: {', '.join(NAMES)}.")
    dtype = dtype_named(NAMES[said["dtype"]])
    shape, (begin, end) = tuple(said["shape"]), said["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if not whole or len(shape) > 8 or end - begin != count(shape) * dtype.itemsize or start + end > reader.size:
        raise reader.broken(f"the header says of '{name}': {str(said)[:200]}, which cannot be")
    return reader.tensor(start + begin, shape, dtype)


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
