"""`.pth` files without torch: a zip (torch 1.6 and later) or the older run of pickles, read one tensor at a time."""

import io
import struct
import zipfile
from itertools import pairwise

import numpy as np

from bert4keras_rwkv.weights.binary_file import BinaryFile
from bert4keras_rwkv.weights.formats.pickled import LARGEST_PICKLE, View, unpickle
from bert4keras_rwkv.weights.formats.pth_writer import write_pth
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, WeightsError, count, officially_named

LOCAL_HEADER = struct.Struct("<4s22xHH")
STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Tensors may share storages: all of them together claim at most so many times the file, and small ones anything.
MOST_SHARED, SMALL = 4, 1 << 20


def open_pth(path, config=None):
    """The tensors of a `.pth` under their official names, lazily; what is no tensor goes to `metadata`.

    Anything damaged, or that asks to run something, is a `WeightsError`; nothing is executed.
    """
    reader = BinaryFile(path)
    try:
        return _opened(reader)
    except WeightsError as error:
        reader.close()
        raise reader.named(error) from error.__cause__
    except Exception as error:  # a damaged pickle or zip can raise nearly anything, says the library reference
        reader.close()
        raise reader.broken(f"{type(error).__name__}, {error}") from error


def _opened(reader):
    zipped = reader.size >= 4 and reader.read(4) == b"PK\x03\x04"
    reader.seek(0)
    saved, offsets = (_zip_container if zipped else _legacy_container)(reader)
    views, metadata = _flattened(reader, saved)
    claimed = sum(count(view.shape) * view.storage.dtype.itemsize for view in views.values())
    if claimed > MOST_SHARED * reader.size + SMALL:
        raise reader.broken(f"it has {reader.size} bytes, and its tensors claim {claimed} bytes of them")
    entries = {name: _tensor(reader, view, offsets[view.storage.key]) for name, view in views.items()}
    return Tensors(officially_named(entries), metadata, reader.close)


def _zip_container(reader):
    """What was saved, and storage key -> offset of its first byte, in a zip of stored members."""
    members = _members(reader)
    found = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise reader.broken(f"it is a zip with {len(found)} data.pkl, so torch.save did not write it")
    (index,) = found
    folder = index.removesuffix("data.pkl")
    byte_order = _member_bytes(reader, members.get(folder + "byteorder"), 16)
    if byte_order not in (b"", b"little"):
        raise WeightsError(
            f"'{reader.path}' was saved on a machine with {byte_order.decode('ascii', 'replace')} byte order."
        )
    saved, storages = unpickle(io.BytesIO(_member_bytes(reader, members[index], LARGEST_PICKLE)))
    offsets = {}
    for key, storage in storages.items():
        info = members.get(f"{folder}data/{key}")
        if info is None or info.file_size < storage.size * storage.dtype.itemsize:
            raise reader.broken(f"its storage '{key}' of {storage.size} {storage.dtype} is not there or too short")
        offsets[key] = _member_offset(reader, info)
    return saved, offsets


def _members(reader):
    """Name -> entry of the zip's directory. Members of one name, or that share bytes, are refused."""
    with open(reader.path, "rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    members = {info.filename: info for info in entries}
    if len(members) < len(entries):
        raise reader.broken("it is a zip with two members of one name")
    entries.sort(key=lambda info: info.header_offset)
    for before, after in pairwise(entries):
        if before.header_offset + LOCAL_HEADER.size + before.compress_size > after.header_offset:
            raise reader.broken(f"'{before.filename}' and '{after.filename}' in it overlap")
    return members


def _member_bytes(reader, info, limit):
    """The bytes of a small member of the zip; of a missing one, none."""
    if info is None:
        return b""
    if info.file_size > limit:
        raise reader.broken(f"'{info.filename}' in it claims {info.file_size} bytes")
    reader.seek(_member_offset(reader, info))
    return reader.read(info.file_size)


def _member_offset(reader, info):
    """Where the bytes of a stored member begin; its local header says how long its name and padding are."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise reader.broken(f"'{info.filename}' in it is compressed or encrypted")
    reader.seek(info.header_offset)
    signature, name_size, extra_size = LOCAL_HEADER.unpack(reader.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise reader.broken(f"'{info.filename}' is not where the directory of the zip says")
    offset = info.header_offset + LOCAL_HEADER.size + name_size + extra_size
    if offset + info.file_size > reader.size:
        raise reader.broken(f"'{info.filename}' in it reaches beyond its end")
    return offset


def _legacy_container(reader):
    """The same for the container before torch 1.6: five pickles, then each storage with its size before it."""
    magic, protocol, system, (saved, storages), (keys, _) = (
        unpickle(reader)[0],
        unpickle(reader)[0],
        unpickle(reader)[0],
        unpickle(reader),
        unpickle(reader),
    )
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise reader.broken("it does not begin like a file of torch.save")
    if not system["little_endian"]:
        raise WeightsError(f"'{reader.path}' was saved on a machine with big-endian byte order.")
    offsets = {}
    offset = reader.tell()
    for key in keys:
        storage = storages[key]
        reader.seek(offset)
        (size,) = struct.unpack("<q", reader.read(8))
        if size < storage.size:
            raise reader.broken(f"its storage '{key}' has {size} elements instead of {storage.size}")
        offsets[key] = offset + 8
        offset += 8 + size * storage.dtype.itemsize
    reader.seek(offset)  # the last one is whole, too
    return saved, offsets


def _flattened(reader, saved):
    """Name -> `View`, and the rest as metadata; a dict within the dict, as trainers save it, is opened."""
    if not isinstance(saved, dict):
        raise reader.broken(f"it holds a {type(saved).__name__} instead of a dict of tensors")
    inner = saved.get("state_dict")
    if isinstance(inner, dict):
        saved = {**{name: value for name, value in saved.items() if name != "state_dict"}, **inner}
    views = {name: value for name, value in saved.items() if isinstance(value, View)}
    if not all(isinstance(name, str) for name in saved):
        raise reader.broken("not all its names are text")
    return views, {name: value for name, value in saved.items() if name not in views}


def _tensor(reader, view, offset):
    """A `Tensor` that reads the part of the storage its view reaches over, and no more."""
    if view.shape and count(view.shape) * view.storage.dtype.itemsize > reader.size:
        raise reader.broken(f"a tensor of shape {view.shape} would be larger than the file")
    dtype = view.storage.dtype
    if view.span == count(view.shape) and _in_order(view):
        return reader.tensor(offset + view.offset * dtype.itemsize, view.shape, dtype)
    steps = tuple(stride * dtype.itemsize for stride in view.strides)

    def read():
        if 0 in view.shape:
            return np.empty(view.shape, dtype)
        part = reader.array(offset + view.offset * dtype.itemsize, view.span, dtype)
        # NumPy compares shape and strides with the buffer; `as_strided` would believe them.
        return np.ascontiguousarray(np.ndarray(view.shape, dtype, part, strides=steps))

    return Tensor(view.shape, dtype, read)


def _in_order(view):
    """Whether the elements lie in the file as NumPy orders them."""
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def is_pth(path, start):
    """Whether it begins like a zip or a pickle."""
    return start.startswith(STARTS)


def _write(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_pth(path, tensors, dtype, progress)


FORMAT = Format(
    "pth",
    "official `.pth`",
    ("4", "5", "6", "7"),
    is_pth,
    open_pth,
    ".pth",
    _write,
    dialects=("hf", "fla"),
    dtypes=("float32", "bfloat16", "float16", "float64"),
)
