"""The pickle inside a `.pth`: names and where their tensors lie, with everything else refused.

Nothing of the pickle is executed, and Python's unpickler is not used: a machine of forty opcodes builds dicts, lists,
tuples, texts and numbers, and knows the globals of a checkpoint. It has no objects with attributes, so that what was
checked stays as it is. The meaning of persistent ids and `_rebuild_tensor_v2`: `torch.serialization`, `torch._utils`.
"""

import pickletools
from dataclasses import dataclass

import numpy as np

from bert4keras_rwkv.weights.tensors import DTYPES, WeightsError

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

LARGEST_PICKLE = 64 << 20  # bytes; names and shapes: a 14B model's has 0.2 MB
MOST_OPCODES = 1 << 20  # a 14B model's has 60 thousand, an optimizer twice as many again
DEEPEST, MOST_VALUES = 32, 1 << 22  # of what comes out, each text counted by its length
LARGEST_KEY = 1 << 63
MOST_DIMENSIONS = 8
SIMPLE = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers somewhere in the file."""

    dtype: np.dtype
    key: str
    size: int


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Global:
    """A function or a class that the pickle names. It stands for itself, and is never looked up."""

    name: str


ORDERED_DICT, REBUILD = Global("collections OrderedDict"), Global("torch._utils _rebuild_tensor_v2")
PARAMETER = Global("torch._utils _rebuild_parameter")
GLOBALS = {one.name: one for one in (ORDERED_DICT, REBUILD, PARAMETER, *(Global(f"torch {name}") for name in STORAGES))}


def unpickle(file):
    """The next pickle of a binary file: (value, storages), plain Python with a `View` for each tensor, and key ->
    `Storage`. The file then stands behind it.

    Anything but the pickle of a checkpoint raises: `WeightsError` for what is refused, nearly anything for what is
    broken. Time and memory are bounded by the size of the pickle.
    """
    machine, start = _Machine(), file.tell()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if count >= MOST_OPCODES or position - start > LARGEST_PICKLE:
            raise WeightsError(
                f"The pickle does not end within {LARGEST_PICKLE >> 20} MiB and {MOST_OPCODES} opcodes, so it is no "
                "checkpoint's."
            )
        machine.run(opcode.name, argument)
    value = machine.stack.pop()
    _measure([value], DEEPEST, MOST_VALUES)
    return value, machine.storages


class _Machine:
    """A stack of values. Each method is what an opcode does; every other opcode is refused."""

    def __init__(self):
        self.stack, self.marked, self.memo, self.storages = [], [], {}, {}

    def run(self, opcode, argument):
        if opcode in PUSHED:
            self.stack.append(argument)
        elif opcode in EMPTY:
            self.stack.append(EMPTY[opcode]())
        elif opcode in OPCODES:
            OPCODES[opcode](self, argument)
        elif opcode not in IGNORED:
            raise WeightsError(f"The pickle uses {opcode}, which no checkpoint needs. Nothing was run.")

    def mark(self, _):
        self.marked.append(self.stack)
        self.stack = []

    def above_mark(self):
        """What lies above the last mark, as a list."""
        above, self.stack = self.stack, self.marked.pop()
        return above

    def pop(self, _):
        self.stack.pop()

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index):
        self.stack.append(self.memo[index])

    def make_tuple(self, _):
        above = tuple(self.above_mark())
        self.stack.append(above)

    def make_list(self, _):
        above = self.above_mark()
        self.stack.append(above)

    def make_dict(self, _):
        above = self.above_mark()
        self.stack.append({})
        self.set_items(above)

    def tuple1(self, _):
        self.stack[-1:] = [(self.stack[-1],)]

    def tuple2(self, _):
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def tuple3(self, _):
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def append(self, _):
        value = self.stack.pop()
        self.wanted(list, "APPEND").append(value)

    def appends(self, _):
        above = self.above_mark()
        self.wanted(list, "APPENDS").extend(above)

    def set_item(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def set_above(self, _):
        self.set_items(self.above_mark())

    def set_items(self, flat):
        """Key, value, key, value into the dict on top. Only what is cheap to compare may be a key."""
        target = self.wanted(dict, "SETITEMS")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(key) is not str and (type(key) is not int or not -LARGEST_KEY <= key < LARGEST_KEY):
                raise WeightsError(f"The pickle has a {type(key).__name__} as a key. Texts and numbers may be keys.")
            target[key] = value

    def wanted(self, kind, opcode):
        """The top of the stack, which must be of this kind."""
        if type(self.stack[-1]) is not kind:
            raise WeightsError(f"The pickle uses {opcode} on a {type(self.stack[-1]).__name__}. Nothing was run.")
        return self.stack[-1]

    def named(self, name):
        """The global 'module name'."""
        if name not in GLOBALS:
            raise WeightsError(
                f"The pickle asks for '{name.replace(' ', '.')}', which is no part of a checkpoint and may do harm. "
                "Nothing was run. If the file is to be trusted, save its tensors anew: torch.save(dict of tensors, "
                "path), or as safetensors."
            )
        self.stack.append(GLOBALS[name])

    def stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise WeightsError("The pickle uses STACK_GLOBAL without two names. Nothing was run.")
        self.named(f"{module} {name}")

    def reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        if function == ORDERED_DICT and arguments == ():
            self.stack.append({})
        elif function == PARAMETER and type(arguments) is tuple and arguments and type(arguments[0]) is View:
            self.stack.append(arguments[0])
        elif function == REBUILD and type(arguments) is tuple and len(arguments) >= 4:
            self.stack.append(_view(*arguments[:4]))
        else:
            raise WeightsError("The pickle uses REDUCE in a way that no checkpoint does. Nothing was run.")

    def build(self, _):
        """Attributes: torch gives its OrderedDict a `_metadata`, of no interest here. Nothing else has any."""
        self.stack.pop()
        self.wanted(dict, "BUILD")

    def persistent(self, _):
        """A storage, by what torch calls its persistent id."""
        pid = self.stack.pop()
        parts = (
            pid if type(pid) is tuple and 5 <= len(pid) <= 6 and all(type(one) in ATOMS for one in pid) else [None] * 5
        )
        kind, storage, key, _, size = parts[:5]
        name = storage.name.removeprefix("torch ") if type(storage) is Global else None
        if kind != "storage" or name not in STORAGES or type(key) is not str or not _natural(size) or any(parts[5:]):
            raise WeightsError("The pickle describes a storage in an unknown way.")
        found = Storage(DTYPES[STORAGES[name]], key, size)
        if self.storages.setdefault(key, found) != found:
            raise WeightsError(f"The pickle describes the storage '{key}' in two ways.")
        self.stack.append(found)


ATOMS = (*SIMPLE, Global)
PUSHED = frozenset((
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
    "BINSTRING", "SHORT_BINSTRING",
))  # fmt: skip
EMPTY = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
OPCODES = {
    "MARK": _Machine.mark, "POP": _Machine.pop, "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get, "LONG_BINGET": _Machine.get, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "DICT": _Machine.make_dict, "LIST": _Machine.make_list, "TUPLE": _Machine.make_tuple,
    "TUPLE1": _Machine.tuple1, "TUPLE2": _Machine.tuple2, "TUPLE3": _Machine.tuple3,
    "APPEND": _Machine.append, "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_above,
    "GLOBAL": _Machine.named, "STACK_GLOBAL": _Machine.stack_global, "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build, "BINPERSID": _Machine.persistent,
}  # fmt: skip


def _view(storage, offset, shape, strides):
    """A checked `View`: it lies inside its storage."""
    plain = type(storage) is Storage and _natural(offset) and type(shape) is tuple and type(strides) is tuple
    if not plain or not len(shape) == len(strides) <= MOST_DIMENSIONS or not all(map(_natural, shape + strides)):
        raise WeightsError("The pickle describes a tensor in an unknown way.")
    view = View(storage, offset, shape, strides)
    if view.span and offset + view.span > storage.size:
        raise WeightsError(f"A tensor of shape {shape} reaches beyond its storage of {storage.size} elements.")
    return view


def _natural(number):
    """Whether it is a whole number from 0 on that a file can mean."""
    return type(number) is int and 0 <= number < LARGEST_KEY


def _measure(values, levels, left):
    """How much of `left` remains when every value was counted as often as it is met. What is shared can be met without
    end, and what holds itself is.
    """
    for value in values:
        left -= 1 + (len(value) if type(value) in (str, bytes) else 0)
        if type(value) in (dict, list, tuple):
            parts = [*value, *value.values()] if type(value) is dict else value
            left = _measure(parts, levels - 1, left) if levels else -1
        if left < 0:
            raise WeightsError("The pickle describes something deeper or larger than any checkpoint.")
    return left
