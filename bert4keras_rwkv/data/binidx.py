"""binidx data sets of RWKV-LM: `NAME.bin` with the tokens, `NAME.idx` with where documents begin; and the order in
which RWKV-LM reads them.

NAME.idx, little-endian: "MMIDIDX\\0\\0", u64 version 1, u8 dtype code, u64 items, u64 boundaries; int32 sizes (tokens),
int64 pointers (bytes), int64 boundaries (0, 1, .., items). In NAME.bin each document ends with its end token. Source:
RWKV-LM, RWKV-v5/src/binidx.py and dataset.py.
"""

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import atomic_files
from bert4keras_rwkv.data.documents import Document, checked, document

MAGIC, VERSION = b"MMIDIDX\0\0", 1
HEAD = struct.Struct("<9sQBQQ")
DTYPES = {code: np.dtype(name) for code, name in enumerate(("u1", "i1", "<i2", "<i4", "<i8"), 1)} | {8: np.dtype("<u2")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
GOLDEN = (math.sqrt(5) - 1) / 2


def binidx_paths(path):
    """The .bin and the .idx of a data set. path: either of them, or their name without a suffix."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    return stem.with_name(stem.name + ".bin"), stem.with_name(stem.name + ".idx")


def write_binidx(path, documents, end_token=0, dtype="uint16"):
    """Write documents (`Document` or sequences of ids) as a binidx data set; both files appear when they are whole.

    Each gets the end token. dtype: uint16 is what RWKV-LM reads. Returns how many were written.

    Raises:
        ValueError: an id that dtype cannot hold, with the number of its document.
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    if dtype not in CODES:
        raise ValueError(f"`dtype` is one of {', '.join(str(known) for known in CODES)}. Received: {dtype}.")
    tokens_path, index_path = binidx_paths(path)
    sizes, limit = [], np.iinfo(dtype).max + 1
    with atomic_files(index_path, tokens_path) as (index, tokens):
        with open(tokens, "wb") as file:
            for number, one in enumerate(map(document, documents)):
                checked(one, limit, f"Document {number} ({dtype} holds ids below {limit})")
                np.append(one.ids, end_token).astype(dtype).tofile(file)
                sizes.append(len(one.ids) + 1)
        index.write_bytes(_index(np.array(sizes, np.int64), dtype))
    return len(sizes)


class Binidx(Sequence):
    """A binidx data set: its documents in any order, without their end tokens, or its tokens as one stream.

    path: the .bin, the .idx, or their name without a suffix. sizes: (n,) int64, tokens of each document. total: tokens
    of the stream.

    Raises:
        ValueError: a damaged file: which, and which item.
    """

    def __init__(self, path, end_token=0):
        self.path, index_path = map(str, binidx_paths(path))
        self.end_token = end_token
        self.dtype, self._sizes, self._starts = _read_index(index_path)
        size = os.path.getsize(self.path)
        self.total = size // self.dtype.itemsize
        ends = self._starts + self._sizes.astype(np.int64) * self.dtype.itemsize
        outside = (self._starts < 0) | (self._starts > size) | (ends > size)  # a start near 2^63 has a negative end
        wrong = (self._sizes < 0) | outside | (self._starts % self.dtype.itemsize > 0)
        self._refuse(wrong, index_path, ends, size)
        if size % self.dtype.itemsize:
            raise ValueError(f"'{self.path}' is damaged: {size} bytes are no whole number of {self.dtype} tokens.")
        last = self._last_tokens()
        self.sizes = self._sizes - (last == end_token)

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, number):
        number = range(len(self))[number]
        ids = self._read(int(self._starts[number]), int(self.sizes[number]))
        return Document(ids.astype(np.int32))

    def tokens(self, start, count):
        """Tokens of the stream (count,), int32: those of one document after those of another, end tokens too."""
        if not 0 <= start <= start + count <= self.total:
            raise ValueError(f"'{self.path}' has {self.total} tokens. Received: {start} .. {start + count}.")
        return self._read(start * self.dtype.itemsize, count).astype(np.int32)

    def place(self, number):
        """Where a document stands, for errors."""
        return f"'{self.path}', item {number}"

    def _read(self, start, count):
        """`count` tokens from a byte on. The file is opened for each read, so that threads share nothing."""
        read = np.fromfile(self.path, self.dtype, count, offset=start)
        if len(read) < count:
            raise ValueError(f"'{self.path}' became shorter while it was used.")
        return read

    def _last_tokens(self):
        """The last token of each item, -1 for an empty one."""
        last = np.full(len(self), -1, np.int64)
        if not len(self) or not self.total:
            return last
        there = self._sizes > 0
        places = self._starts[there] // self.dtype.itemsize + self._sizes[there] - 1
        last[there] = np.memmap(self.path, self.dtype, "r")[places]
        return last

    def _refuse(self, wrong, index_path, ends, size):
        """Say which item does not lie inside the .bin."""
        if wrong.any():
            item = int(np.argmax(wrong))
            raise ValueError(
                f"'{index_path}' does not fit '{self.path}': item {item} lies in bytes {self._starts[item]} to "
                f"{ends[item]}, and there are {size}. Were both files copied whole, and do they belong together?"
            )


def magic_prime(total, length):
    """RWKV-LM's magic prime of a data set: the largest prime of 3n + 2 below its pieces of `length` tokens.

    Then i -> i^3 modulo the prime is a permutation: a pass reads every piece once.

    Raises:
        ValueError: fewer than four pieces.
    """
    for candidate in range(total // length - 1, 1, -1):
        if candidate % 3 == 2 and _is_prime(candidate):
            return candidate
    raise ValueError(
        f"RWKV-LM's order needs at least 3 pieces of ctx_len tokens. Received: {total} tokens, ctx_len={length}. "
        "Choose a smaller ctx_len or add data."
    )


def sample_start(number, prime, length):
    """Where RWKV-LM's sample `number`, counted from 1 over all epochs and ranks, begins in the stream."""
    return int(prime * GOLDEN) * number**3 % prime * length


def _index(sizes, dtype):
    """The bytes of an .idx."""
    pointers = (np.cumsum(sizes) - sizes) * dtype.itemsize
    head = HEAD.pack(MAGIC, VERSION, CODES[dtype], len(sizes), len(sizes) + 1)
    arrays = sizes.astype("<i4"), pointers.astype("<i8"), np.arange(len(sizes) + 1, dtype="<i8")
    return head + b"".join(array.tobytes() for array in arrays)


def _read_index(path):
    """dtype of the tokens, sizes and pointers of an .idx."""
    with open(path, "rb") as file:
        head = file.read(HEAD.size)
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise ValueError(f"'{path}' is no index of a binidx data set. It begins with {head[:9]!r}, not {MAGIC!r}.")
        _, version, code, items, boundaries = HEAD.unpack(head)
        if version != VERSION or code not in DTYPES:
            raise ValueError(f"'{path}' has version {version} and dtype code {code}; known are 1 and {[*DTYPES]}.")
        wanted, size = HEAD.size + 12 * items + 8 * boundaries, os.path.getsize(path)
        if size != wanted:
            raise ValueError(f"'{path}' is damaged: {items} items need {wanted} bytes, and it has {size}.")
        sizes, starts = np.fromfile(file, "<i4", items), np.fromfile(file, "<i8", items)
    return DTYPES[code], sizes, starts


def _is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
