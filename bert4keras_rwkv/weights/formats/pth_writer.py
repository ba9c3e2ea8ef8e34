"""Writes `.pth` files without torch: a zip of stored members around a pickle."""

import struct
import zipfile

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.weights.casting import bytes_of, cast, report
from bert4keras_rwkv.weights.formats.pickled import STORAGES
from bert4keras_rwkv.weights.tensors import count, dtype_named

ALIGNMENT = 64  # torch.load(mmap=True) uses storages where they lie
ZIP64_FROM = 1 << 31


def write_pth(path, mapping, dtype=None, progress=None):
    """Write official name -> array as a `.pth` that `torch.load(weights_only=True)` reads, in the mapping's order.

    `dtype` ('bfloat16', ...) casts what is floating. `progress(done, total)` is called after each tensor. torch is
    not needed.
    """
    tensors = cast(mapping, dtype)
    with atomic_file(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "archive/data.pkl", [_pickled(tensors)])
        _add(archive, "archive/byteorder", [b"little"])
        for index, name in enumerate(tensors):
            _add(archive, f"archive/data/{index}", bytes_of(tensors, name), tensors.entry(name).nbytes)
            report(progress, index + 1, tensors)
        _add(archive, "archive/version", [b"3\n"])


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
