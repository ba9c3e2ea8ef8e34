"""The pickle inside a `.pth`: names and where their tensors lie, with every other global refused.

Nothing of the pickle is executed: it may name the few globals of a checkpoint, and each of them is a small function
here. torch is not needed. What the persistent ids and `_rebuild_tensor_v2` mean: `torch.serialization`,
`torch._utils`.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.tensors import DTYPES

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

LARGEST_PICKLE = 64 << 20  # names and shapes; a 14B model's has 0.2 MB
MOST_DIMENSIONS = 8

# What torch, and our own writer, use to say a dict of tensors. Everything else is somebody's own idea.
OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
))  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A run of numbers somewhere in the file."""

    dtype: np.dtype
    key: str
    size: int


@dataclass(frozen=True)
class View:
    """A tensor as torch describes it: part of a storage. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    @property
    def span(self):
        """How many elements of the storage it reaches over."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


def unpickle(file):
    """The next pickle of a binary file: (value, storages), plain Python with a `View` for each tensor, and key ->
    `Storage`.

    Anything but the pickle of a checkpoint raises, before anything large is allocated: `WeightsError` for what is
    refused, whatever `pickle` raises for what is broken.
    """
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name not in OPCODES:
            raise WeightsError(f"The pickle uses {opcode.name}, which no checkpoint needs. Nothing was run.")
        if opcode.name == "LONG_BINPUT" and argument > position:  # the memo would grow to the index, whatever it is
            raise WeightsError(f"The pickle asks for a memo of {argument} entries at byte {position}. Nothing was run.")
        if position - start > LARGEST_PICKLE:
            raise WeightsError(f"The pickle does not end within {LARGEST_PICKLE >> 20} MiB, so it is no checkpoint's.")
    size = file.tell() - start
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(size)))
    return unpickler.load(), unpickler.storages


class _Unpickler(pickle.Unpickler):
    """Knows the globals of a checkpoint, as new functions each time, so that nothing a pickle does to them outlives
    it.
    """

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: OrderedDict()
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *rest: _view(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        if module == "torch" and name in STORAGES:
            return name
        raise WeightsError(
            f"The pickle asks for '{module}.{name}', which is no part of a checkpoint and may do harm. Nothing was "
            "run. If the file is to be trusted, save its tensors anew: torch.save(dict of tensors, path), or as "
            "safetensors."
        )

    def persistent_load(self, pid):
        kind, storage, key, _, size, *view = pid
        if kind != "storage" or storage not in STORAGES or not isinstance(key, str) or not _natural(size) or any(view):
            raise WeightsError(f"The pickle describes a storage in an unknown way: {str(pid)[:200]}.")
        return self.storages.setdefault(key, Storage(DTYPES[STORAGES[storage]], key, size))


def _view(storage, offset, shape, strides):
    """A checked `View`: it lies inside its storage."""
    plain = (
        isinstance(storage, Storage) and _natural(offset) and isinstance(shape, tuple) and isinstance(strides, tuple)
    )
    if not plain or not len(shape) == len(strides) <= MOST_DIMENSIONS or not all(map(_natural, shape + strides)):
        raise WeightsError("The pickle describes a tensor in an unknown way.")
    view = View(storage, offset, shape, strides)
    if view.span and offset + view.span > storage.size:
        raise WeightsError(f"A tensor of shape {shape} reaches beyond its storage of {storage.size} elements.")
    return view


def _natural(number):
    """Whether it is a whole number from 0 on."""
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
