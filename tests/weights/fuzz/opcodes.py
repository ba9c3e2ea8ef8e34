"""Pickles written opcode by opcode, so that they say what no program would. Which there are: `pickletools.opcodes`."""

import pickle
import struct
import zipfile


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def numbers(values):
    return tuple_of(*map(number, values))


def storage(key, size, kind="FloatStorage", more=b""):
    """A persistent id."""
    dtype = b"ctorch\n" + kind.encode() + b"\n"
    return tuple_of(text("storage"), dtype, text(key), text("cpu"), number(size), more) + b"Q"


def tensor(*parts):
    """What torch makes of a storage, an offset, a shape and strides."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(*parts, b"\x89", b"ccollections\nOrderedDict\n)R") + b"R"


def view(key, size, offset, shape, strides, kind="FloatStorage"):
    """A tensor of a storage of `size` elements."""
    return tensor(storage(key, size, kind), number(offset), numbers(shape), numbers(strides))


def build(**attributes):
    """BUILD: sets attributes of what lies on the stack."""
    return b"}(" + b"".join(text(name) + value for name, value in attributes.items()) + b"ub"


def doubled(depth):
    """A tuple of two of itself, and so on: 2^depth leaves in six bytes a level."""
    levels = (b"0h" + bytes([level, 0x68, level]) + b"\x86q" + bytes([level + 1]) for level in range(depth))
    return b")q\x00" + b"".join(levels)


def deep(depth):
    """A tuple in a tuple, and so on."""
    return b")" + b"\x85" * depth


def checkpoint(*items):
    """The pickle of a dict: keys and values, pickled, one after the other."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


def write_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A `.pth` with this pickle and these storages, key -> bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in dict(storages).items():
            archive.writestr(f"archive/data/{key}", data)
