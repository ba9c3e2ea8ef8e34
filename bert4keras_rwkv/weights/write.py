"""Writers for `.pth`, `.safetensors` and our `.weights.h5`: one tensor in memory at a time, whole files only."""

import struct
import zipfile

import h5py
import numpy as np

from bert4keras_rwkv.weights.keras_h5 import h5_path
from bert4keras_rwkv.weights.pickled import STORAGES
from bert4keras_rwkv.weights.rules import to_variables
from bert4keras_rwkv.weights.safetensors_file import header_of
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, as_tensors, count, dtype_named
from bert4keras_rwkv.weights.whole import whole_file

ALIGNMENT = 64  # torch.load(mmap=True) uses storages where they lie
ZIP64_FROM = 1 << 31


def write_pth(path, mapping, dtype=None, progress=None):
    """Write official name -> array as a `.pth` that `torch.load(weights_only=True)` reads, in the mapping's order.

    `dtype` ('bfloat16', ...) casts what is floating. `progress(done, total)` is called after each tensor. torch is
    not needed.
    """
    tensors = cast(mapping, dtype)
    with whole_file(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "archive/data.pkl", [_pickled(tensors)])
        _add(archive, "archive/byteorder", [b"little"])
        for index, name in enumerate(tensors):
            _add(archive, f"archive/data/{index}", _bytes_of(tensors, name), tensors.entry(name).nbytes)
            _report(progress, index + 1, tensors)
        _add(archive, "archive/version", [b"3\n"])


def write_safetensors(path, mapping, dtype=None, metadata=None, progress=None):
    """Write official name -> array as `.safetensors`; arguments as for `write_pth`, `metadata` a dict of texts."""
    tensors = cast(mapping, dtype)
    with whole_file(path) as unfinished, open(unfinished, "wb") as file:
        file.write(header_of(tensors, {"format": "pt"} | (metadata or {})))
        for index, name in enumerate(tensors):
            for part in _bytes_of(tensors, name):
                file.write(part)
            _report(progress, index + 1, tensors)


def write_keras_h5(path, mapping, rules, n_layers, dtype=None, progress=None):
    """Write official name -> array as the `.weights.h5` that `RWKV.model.load_weights` reads, by a version's rules.

    Names that are missing or too many, or shapes that cannot be, are one `WeightsError`, before anything is written.
    """
    variables = to_variables(rules, cast(mapping, dtype), n_layers)
    with whole_file(path) as unfinished, h5py.File(unfinished, "w") as file:
        for index, name in enumerate(variables):
            item = file.create_dataset(h5_path(name), data=variables[name])
            if variables.entry(name).dtype == dtype_named("bfloat16"):
                item.attrs["dtype"] = "bfloat16"  # how Keras marks its two opaque bytes
            _report(progress, index + 1, variables)


def cast(mapping, dtype):
    """`mapping` as lazy `Tensors` whose floating tensors have `dtype`; None keeps every dtype."""
    tensors = as_tensors(mapping)
    if dtype is None:
        return tensors
    wanted = dtype_named(dtype)
    return Tensors({name: _cast(tensors.entry(name), wanted) for name in tensors}, tensors.metadata, tensors.close)


def _cast(entry, dtype):
    """The tensor with another dtype if it is a floating one."""
    floating = entry.dtype == dtype_named("bfloat16") or np.issubdtype(entry.dtype, np.floating)
    if not floating or entry.dtype == dtype:
        return entry
    return Tensor(entry.shape, dtype, lambda: entry.read().astype(dtype))


def _report(progress, done, tensors):
    if progress is not None:
        progress(done, len(tensors))


def _bytes_of(tensors, name):
    """The bytes of one tensor, read now, as one part."""
    array = np.ascontiguousarray(tensors[name])
    yield array.reshape(-1).view(np.uint8).data


def _add(archive, name, parts, size=0):
    """Add a stored member whose data begins at a multiple of the alignment."""
    info = zipfile.ZipInfo(name)
    large = size >= ZIP64_FROM
    info.file_size = size
    before = archive.fp.tell() + 30 + len(name) + (20 if large else 0)
    padding = -(before + 4) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        for part in parts:
            member.write(part)


def _pickled(tensors):
    """The pickle of a dict name -> torch tensor, opcode by opcode, for pickling asks for the classes and torch may
    not be here.
    """
    storages = {dtype_named(dtype): storage for storage, dtype in STORAGES.items()}
    out = [b"\x80\x02}("]  # protocol 2, an empty dict, a mark
    for index, name in enumerate(tensors):
        entry = tensors.entry(name)
        storage = b"(" + _text("storage") + _global("torch", storages[entry.dtype]) + _text(str(index)) + _text("cpu")
        storage += _number(count(entry.shape)) + b"tQ"  # the tuple is a persistent id
        view = b"(" + storage + _number(0) + _tuple(entry.shape) + _tuple(_strides(entry.shape))
        hooks = _global("collections", "OrderedDict") + b")R"
        out.append(_text(name) + _global("torch._utils", "_rebuild_tensor_v2") + view + b"\x89" + hooks + b"tR")
    out.append(b"u.")
    return b"".join(out)


def _text(text):
    data = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _number(number):
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes((number.bit_length() + 8) // 8, "little")
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(numbers):
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _strides(shape):
    """Strides in elements of a tensor whose last dimension lies closest together."""
    return tuple(count(shape[axis + 1 :]) for axis in range(len(shape)))
