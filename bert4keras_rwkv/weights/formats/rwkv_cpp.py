"""Files of rwkv.cpp ("ggmf", versions 100 and 101), as lazy tensors under official names. They are only read.

A header of six numbers, then tensor after tensor, each with a header of its own. The names are official; some tensors
are not: decays and bonuses come after their exponentials, low-rank factors transposed, RWKV-7's mixes in one.
https://github.com/RWKV/rwkv.cpp/blob/master/docs/FILE_FORMAT.md
"""

import struct

import numpy as np

from bert4keras_rwkv.weights.binary_file import BinaryFile
from bert4keras_rwkv.weights.formats.llama_cpp.blocks import metadata_of, stored_size, stored_tensor
from bert4keras_rwkv.weights.formats.llama_cpp.header import Stored
from bert4keras_rwkv.weights.formats.llama_cpp.packed import packed_blocks
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.packed import OFFERED
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, derived, vector

MAGIC = b"fmgg"  # 0x67676d66, little-endian
VERSIONS = (100, 101)
TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}
DROPPED = {4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3"}
BLOCKS_FROM = 101  # before, blocks were laid out in other ways
LONGEST_NAME = 1 << 10
MOST_TENSORS = 1 << 16
MIXES = "rwkvag"
# Decays that float32 rounded to 1 and to 0 lie beyond these: their exponents are lost, and any out there do as well.
SLOWEST, FASTEST = 2.0**-25, 110.0
TINY = 2.0**-160


def is_rwkv_cpp(path, start):
    """Whether it begins as one."""
    return start.startswith(MAGIC)


def open_rwkv_cpp(path, config=None):
    """The tensors of a file of rwkv.cpp under their official names, lazily. Damage is a `WeightsError`.

    `metadata` has what `blocks.metadata_of` says, by the names in the file.
    """
    reader = BinaryFile(path)
    try:
        stored, said = _stored(reader)
        return Tensors(_official(stored), {"format": "rwkv_cpp", **said}, reader.close)
    except (ValueError, IndexError, struct.error) as error:
        reader.close()
        if isinstance(error, WeightsError):
            raise reader.named(error) from error.__cause__
        raise reader.broken(f"its tensors are not those of an RWKV ({error})") from error


def _stored(reader):
    """Name -> `Tensor` as it lies in the file, and metadata: what `metadata_of` says of their types, and for
    `packed.as_packed` the matrices in blocks.
    """
    from gguf import GGMLQuantizationType

    magic, version, ids, width, layers, _ = struct.unpack("<4s5i", reader.read(24))
    if magic != MAGIC or version not in VERSIONS:
        raise WeightsError(
            f"'{reader.path}' is a file of rwkv.cpp of version {version}. Versions 100 and 101 are read: convert the "
            "original `.pth` again with a newer rwkv.cpp, or load it here."
        )
    stored, types, sizes, offered = {}, {}, [], {}
    while reader.tell() < reader.size:
        name, shape, kind = _header(reader, version)
        if name in stored or len(stored) == MOST_TENSORS:
            raise reader.broken(f"it has '{name}' twice, or more than {MOST_TENSORS} tensors")
        at = Stored(shape, GGMLQuantizationType[kind], reader.tell())
        stored[name] = stored_tensor(reader, name, at.offset, shape, at.kind)
        types[name] = kind
        sizes.append(stored_size(name, shape, at.kind))
        packed = packed_blocks(reader, name, at)
        if packed is not None and name.endswith(".weight") and name != "emb.weight":
            offered[name] = packed
        reader.seek(reader.tell() + sizes[-1])
    found = len({name.split(".")[1] for name in stored if name.startswith("blocks.")})
    if "emb.weight" not in stored or stored["emb.weight"].shape != (ids, width) or found != layers:
        raise reader.broken(f"it should have {ids} ids of width {width} and {layers} layers, and has {found} layers")
    return stored, {**metadata_of(types, sizes), OFFERED: offered}


def _header(reader, version):
    """Name, shape in NumPy's order, and type of the next tensor."""
    dimensions, length, number = struct.unpack("<3i", reader.read(12))
    if not 1 <= dimensions <= 3 or not 0 < length <= LONGEST_NAME:
        raise reader.broken(f"a tensor has {dimensions} dimensions and a name of {length} bytes")
    shape = struct.unpack(f"<{dimensions}i", reader.read(4 * dimensions))[::-1]
    name = reader.read(length).decode("utf-8")
    if min(shape) < 1:
        raise reader.broken(f"'{name}' has the shape {shape}")
    kind = TYPES.get(number)
    if kind is None or (version < BLOCKS_FROM and number > 1):
        said = kind or DROPPED.get(number, f"the unknown type {number}")
        raise WeightsError(
            f"'{name}' in '{reader.path}' is stored as {said} of version {version}, which rwkv.cpp itself no longer "
            "reads. Convert the original `.pth` again, or load it here."
        )
    return name, shape, kind


def _official(stored):
    """Official name -> `Tensor`, in the order of the file."""
    changes, width = _changes(stored), stored["emb.weight"].shape[1]
    entries = {}
    for name, tensor in stored.items():
        part = name.rsplit(".", 1)[-1]
        if part == "x_rwkvag":
            entries |= {f"{name.removesuffix(MIXES)}{mix}": _row(tensor, i) for i, mix in enumerate(MIXES)}
            continue
        change = changes.get(part) or changes.get(part[:-1] + "*")
        entries[name] = tensor if change is None else derived(lambda x, change=change: change(x, width), tensor)
    return entries


def _row(tensor, index):
    """One of the mixes [6, 1, C]."""
    if tensor.shape[0] != len(MIXES):
        raise WeightsError(f"The {len(MIXES)} mixes of an RWKV-7 lie in one tensor. Received: shape {tensor.shape}.")
    return derived(lambda array: vector(array[index]), tensor)


def _changes(stored):
    """Last part of a name ('*' for any last letter) -> function of (array, width) that undoes the converter."""
    names = {name.removeprefix("blocks.0.att.") for name in stored}
    if "x_rwkvag" in names:
        return {f"{letter}{n}": _turned for letter in "wavg" for n in (1, 2)}
    if "time_maa_x" in names:
        factors = dict.fromkeys(("time_maa_w1", "time_decay_w1", "time_decay_w2"), _turned)
        return {**factors, "time_maa_w2": _backwards, "time_maa_*": _vector, "time_decay": _vector, "time_faaaa": _rows}
    if "ln_x.weight" in names:
        return {"time_decay": _decay_5, "time_first": _bonus_5, "time_faaaa": _heads, "time_mix_*": _vector}
    return {"time_decay": _decay_4, "time_first": lambda array, width: array.reshape(-1), "time_mix_*": _vector}


def _vector(array, width):
    return vector(array)


def _turned(array, width):
    return array.T


def _backwards(array, width):
    return array.swapaxes(1, 2)


def _rows(array, width):
    """[H, N, 1] without its last axis; of one head, [N, 1], too."""
    return array.reshape(array.shape[0] if array.ndim == 3 else 1, -1)


def _heads(array, width):
    """A number for each head, [H], or each channel of it, [H, N]. One head's channels, [C, 1], look like many heads."""
    return _rows(array, width) if array.size == width else array.reshape(-1)


def _decay_4(array, width):
    """The log of -y: their decay is -exp of the official one."""
    return np.log(np.maximum(-_within(array, -np.inf, 0), TINY)).reshape(-1)


def _decay_5(array, width):
    """The log of -log y: their decay is the factor itself, exp(-exp) of the official one."""
    exponents = -np.log(np.maximum(_within(array, 0, 1), TINY))
    return _heads(np.log(np.clip(exponents, SLOWEST, FASTEST)), width)


def _bonus_5(array, width):
    """The log: they store exp of `time_first`."""
    return np.log(np.maximum(_within(array, 0, np.inf), TINY)).reshape(-1)


def _within(array, low, high):
    """The array in float64, for logarithms, if all of it lies where exponentials do."""
    if not ((array >= low) & (array <= high)).all():
        raise WeightsError(f"A decay or bonus of an rwkv.cpp file lies from {low} to {high}, and one does not: damage.")
    return array.astype(np.float64)


FORMAT = Format("rwkv_cpp", "`.bin` of rwkv.cpp", ("4", "5", "6", "7"), is_rwkv_cpp, open_rwkv_cpp, suffix=".bin")
