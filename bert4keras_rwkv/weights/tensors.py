"""The hub of all formats: a mapping official name -> array that reads a tensor when it is asked for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from bert4keras_rwkv.packing import Scheme
from bert4keras_rwkv.untrusted import printable, shown

KINDS = (
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
)
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), **{name: np.dtype(name) for name in KINDS}}

LARGEST = 1 << 63  # bytes of an array, for NumPy
LONGEST_NAME = 512

PIECE = 1 << 20  # bytes read at a time of a tensor that lies in rows
WIDE_PIECE = 1 << 26  # the same across its rows: each row gives a run of bytes that should not be short

WRAPPERS = ("model.", "module.", "_forward_module.")


class WeightsError(ValueError):
    """A weight file that cannot be read, is not what it claims, or does not fit the model. The message says which.

    It holds what files say, so it is kept short, and without control characters.
    """

    def __init__(self, message):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Packed:
    """A matrix (outputs, inputs) in fewer bytes, not read yet. `read()` gives the arrays of `scheme.tensors`.

    difference: a `packed.Difference`, how far they are from what the file says, known when they are read; None: not.
    """

    scheme: Scheme
    read: Callable
    difference: object = None


@dataclass(frozen=True)
class Tensor:
    """A tensor that is not read yet.

    `read()` gives an array of this shape and dtype; `rows(start, stop)`, where a format can, part of its first axis,
    and `columns(start, stop)` part of its second. `piece`: how many bytes are read at a time, None for `PIECE`.
    `packed`: the same numbers in fewer bytes, if they are stored so; what is made of the tensor has it no longer.
    """

    shape: tuple
    dtype: np.dtype
    read: Callable
    rows: Callable | None = None
    columns: Callable | None = None
    piece: int | None = None
    packed: Packed | None = None

    def __post_init__(self):
        if min(self.shape, default=0) < 0 or count(filter(None, self.shape)) * self.dtype.itemsize >= LARGEST:
            raise WeightsError(f"No tensor has the shape {shown(self.shape)}.")

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.read(), dtype)

    def pieces(self):
        """(first row, rows) until all is read, about `piece` bytes at a time."""
        piece = self.piece or PIECE
        if self.rows is None or self.nbytes <= piece:
            yield 0, self.read()
            return
        step = max(1, piece * self.shape[0] // self.nbytes)
        for start in range(0, self.shape[0], step):
            yield start, self.rows(start, min(start + step, self.shape[0]))

    def parts(self):
        """(where, part) until all is read: `array[where] = part` fills an array with little memory beside it."""
        if self.rows is not None or self.columns is None:
            for start, rows in self.pieces():
                yield (slice(start, start + len(rows)) if self.shape else ()), rows
        else:
            for start, rows in transposed(self).pieces():
                yield (slice(None), slice(start, start + len(rows))), rows.T

    def changed(self, function, dtype):
        """The tensor with `function`, which keeps shapes, applied to whatever is read of it; its answer has `dtype`."""

        def after(read):
            return None if read is None else lambda *part: function(read(*part))

        return Tensor(self.shape, dtype, after(self.read), after(self.rows), after(self.columns), self.piece)

    def plain(self):
        """The tensor without its packed form."""
        return replace(self, packed=None)

    @property
    def nbytes(self):
        """Bytes of the array once it is read."""
        return count(self.shape) * self.dtype.itemsize


class Tensors(Mapping):
    """Lazy and read-only: `tensors[name]` reads one array, `shapes` and `dtypes` read nothing.

    Nothing read is kept. `metadata` is what the file says beside its tensors. Close it, or use it in a `with`.
    A name that cannot be printed, or is far too long for one, is a `WeightsError`.
    """

    def __init__(self, entries, metadata=None, close=None):
        self._entries = dict(entries)
        strange = next((name for name in self._entries if len(name) > LONGEST_NAME or not name.isprintable()), None)
        if strange is not None:
            raise WeightsError(f"No tensor has the name {shown(strange)}: up to {LONGEST_NAME} printable characters.")
        self._close = close
        self.metadata = dict(metadata or {})

    def __getitem__(self, name):
        return self._entries[name].read()

    def __contains__(self, name):
        return name in self._entries

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)

    @property
    def shapes(self):
        """Name -> shape, without reading."""
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def dtypes(self):
        """Name -> dtype, without reading."""
        return {name: entry.dtype for name, entry in self._entries.items()}

    @property
    def nbytes(self):
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self._entries.values())

    def entries(self):
        """Name -> `Tensor`, as a new dict."""
        return dict(self._entries)

    def entry(self, name):
        """The `Tensor` of this name, not read."""
        return self._entries[name]

    def close(self):
        """Close the file; what was read stays valid. Closing twice is harmless."""
        if self._close is not None:
            self._close()
            self._close = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def as_tensors(mapping):
    """`mapping` name -> array as `Tensors`; one that is `Tensors` already stays as it is."""
    if isinstance(mapping, Tensors):
        return mapping
    return Tensors({name: array_tensor(np.asarray(array)) for name, array in mapping.items()})


def array_tensor(array):
    """An array in memory as a `Tensor`."""
    return Tensor(array.shape, array.dtype, lambda: array, lambda start, stop: array[start:stop])


def transposed(tensor):
    """A matrix as its transpose: views of what is read, in rows where the other gives columns."""

    def turned(read):
        return None if read is None else lambda *part: read(*part).T

    rows, columns = turned(tensor.columns), turned(tensor.rows)
    return Tensor(tensor.shape[::-1], tensor.dtype, turned(tensor.read), rows, columns, WIDE_PIECE)


def official_name(name):
    """`name` without the prefixes that training frameworks put before it (`_forward_module.model.emb.weight`)."""
    while prefix := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None):
        name = name[len(prefix) :]
    return name


def officially_named(entries):
    """Entries under their official names. Two that become one are an error."""
    result = {}
    for name, entry in entries.items():
        official = official_name(name)
        if official in result:
            raise WeightsError(
                f"Two tensors of the file are both '{official}' once prefixes like 'model.' are taken away."
            )
        result[official] = entry
    return result


def count(shape):
    """How many elements a shape has, exactly, however large."""
    total = 1
    for size in shape:
        total *= size
    return total


def dtype_named(name):
    """The dtype for a name like 'bfloat16'. An unknown one is a `WeightsError` that lists those known."""
    if str(name) not in DTYPES:
        raise WeightsError(f"The dtype {str(name)!r} is not known. Known: {', '.join(DTYPES)}.")
    return DTYPES[str(name)]


def derived(function, *tensors, dtype=None):
    """A `Tensor` that is `function(*arrays)`, read whole; its dtype is that of the first unless it is given.

    The shape is found without reading: ValueError or IndexError if the function cannot use these shapes.
    """
    dtype = dtype or tensors[0].dtype
    hollow = [np.broadcast_to(np.zeros((), np.int8), tensor.shape) for tensor in tensors]

    def read():
        return np.ascontiguousarray(function(*(tensor.read() for tensor in tensors)), dtype)

    return Tensor(function(*hollow).shape, dtype, read)


def vector(array):
    """As the official files have a vector of C numbers, [1, 1, C]."""
    return array.reshape(1, 1, -1)
