"""What stands before the data of a GGUF file: keys with values, then the name, shape, type and place of each tensor.

Parsed here, with the numbers of the `gguf` package, rather than by its GGUFReader: that one maps the file, needs 2
seconds and 120 MB for a World vocabulary, and believes every count, so that a damaged one keeps it busy for ever.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bert4keras_rwkv.weights.formats.llama_cpp.blocks import stored_size
from bert4keras_rwkv.weights.tensors import WeightsError, count

# Several times what the header of any RWKV has; beyond it, a count is damaged.
LARGEST_HEADER = 1 << 26
LONGEST_TEXT = 1 << 20
MOST_TEXTS = MOST_NUMBERS = 1 << 18
MOST_DIMENSIONS = 4  # GGML's own limit


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. shape: in NumPy's order. kind: a `gguf.GGMLQuantizationType`. offset: in the file."""

    shape: tuple
    kind: object
    offset: int


def read_header(reader, architectures):
    """(values of the keys, name -> `Stored`) of a GGUF file of one of these architectures. Texts are bytes.

    Raises `WeightsError` for another architecture, naming it, and for damage.
    """
    try:
        return _Parser(reader, architectures).parse()
    except (ValueError, KeyError, struct.error) as error:
        if isinstance(error, WeightsError):
            raise
        raise reader.broken(f"its header is not one of this format ({type(error).__name__}, {error})") from error


class _Parser:
    """Reads a header from its beginning to its end."""

    def __init__(self, reader, architectures):
        import gguf

        self._gguf, self._reader, self._architectures = gguf, reader, architectures
        self._texts = 0

    def parse(self):
        magic, version, tensors, keys = struct.unpack("<4sIQQ", self._take(24))
        if magic != struct.pack("<I", self._gguf.GGUF_MAGIC):
            raise self._reader.broken(f"it begins with {magic!r}, not with b'GGUF'")
        if version not in self._gguf.gguf_reader.READER_SUPPORTED_VERSIONS:
            what = "for a big-endian machine" if version & 0xFFFF == 0 else f"of version {version}"
            raise WeightsError(
                f"'{self._reader.path}' is a GGUF file {what}; versions 2 and 3, little-endian, are read."
            )
        values = self._values(keys)
        self._check_architecture(values.get(self._gguf.Keys.General.ARCHITECTURE, b""))
        return values, self._placed(self._tensors(tensors), values)

    def _values(self, keys):
        values = {}
        for _ in range(keys):
            name = self._text().decode("utf-8")
            if name in values:
                raise self._reader.broken(f"it has the key '{name}' twice")
            values[name] = self._value(self._gguf.GGUFValueType(self._number("<I")))
            if name == self._gguf.Keys.General.ARCHITECTURE:
                self._check_architecture(values[name])
        return values

    def _value(self, kind):
        """One value: a number, bytes, or a list of either."""
        kinds = self._gguf.GGUFValueType
        if kind == kinds.STRING:
            return self._text()
        if kind != kinds.ARRAY:
            return self._numbers(kind, 1)[0]
        inner, length = kinds(self._number("<I")), self._number("<Q")
        if inner == kinds.STRING:
            return [self._text() for _ in range(length)]
        return self._numbers(inner, length)

    def _numbers(self, kind, length):
        if length > MOST_NUMBERS:
            raise self._reader.broken(f"its header claims {length} numbers under one key")
        dtype = np.dtype(self._gguf.GGUFReader.gguf_scalar_to_np[kind])
        return np.frombuffer(self._take(length * dtype.itemsize), dtype).tolist()

    def _tensors(self, tensors):
        """Name -> (shape, kind, offset behind the header)."""
        found = {}
        for _ in range(tensors):
            name = self._text().decode("utf-8")
            dimensions = self._number("<I")
            if name in found or not 1 <= dimensions <= MOST_DIMENSIONS:
                raise self._reader.broken(f"it has '{name}' twice, or with {dimensions} dimensions")
            shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))[::-1]
            kind = self._gguf.GGMLQuantizationType(self._number("<I"))
            if not 0 < count(shape) < 1 << 63:
                raise self._reader.broken(f"'{name}' has the shape {shape}")
            found[name] = (shape, kind, self._number("<Q"))
        return found

    def _placed(self, found, values):
        """Name -> `Stored`: the data begins at the next multiple of the alignment."""
        alignment = values.get(self._gguf.Keys.General.ALIGNMENT, self._gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._reader.broken(f"its alignment is {alignment!r}")
        start = self._gguf.GGUFWriter.ggml_pad(self._reader.tell(), alignment)
        placed = {name: Stored(shape, kind, start + offset) for name, (shape, kind, offset) in found.items()}
        for (before, end), (after, _) in pairwise(sorted(_spans(placed), key=lambda span: span[0].offset)):
            if end > after.offset:
                raise self._reader.broken(f"tensors of the shapes {before.shape} and {after.shape} overlap")
        return placed

    def _check_architecture(self, name):
        if name in self._architectures:
            return
        what = f"the architecture '{_shown(name)}'" if name else "no architecture"
        known = " and ".join(f"'{_shown(one)}'" for one in self._architectures)
        raise WeightsError(f"'{self._reader.path}' is a GGUF file of {what}. Supported: {known}.")

    def _text(self):
        self._texts += 1
        length = self._number("<Q")
        if length > LONGEST_TEXT or self._texts > MOST_TEXTS:
            raise self._reader.broken(f"its header claims a text of {length} bytes, number {self._texts}")
        return self._take(length)

    def _number(self, form):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, size):
        if self._reader.tell() + size > LARGEST_HEADER:
            raise self._reader.broken(f"its header claims to be longer than {LARGEST_HEADER} bytes")
        return self._reader.read(size)


def _spans(placed):
    """(`Stored`, the byte behind it) of each tensor."""
    return [(one, one.offset + stored_size(name, one.shape, one.kind)) for name, one in placed.items()]


def _shown(name):
    """The name of an architecture, for people."""
    return name[:60].decode("utf-8", "replace") if isinstance(name, bytes) else repr(name)[:60]
