"""TFRecord files without TensorFlow: one `tf.train.Example` a document, its ids in the int64 feature `text`.

A record: length u64, masked crc32c of the length, data, masked crc32c of the data, little-endian. Source:
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
"""

import os
import struct
from collections.abc import Sequence
from functools import cache

import numpy as np

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.data.documents import Document, document
from bert4keras_rwkv.data.protobuf import read_example, write_example
from bert4keras_rwkv.untrusted import printable

TEXT, ANSWER = "text", "answer"
HEAD, FOOT = struct.Struct("<QI"), struct.Struct("<I")
POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
MASK = 0xA282EAD8


def write_records(path, documents):
    """Write documents (`Document` or sequences of ids) to a TFRecord file, which appears when it is whole.

    Feature `text`: the ids; `answer`: their answer mask, where a document has one. Returns how many were written.
    """
    count = 0
    with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
        for count, one in enumerate(map(document, documents), 1):  # noqa: B007 - wanted after the loop
            features = {TEXT: one.ids} if one.answer is None else {TEXT: one.ids, ANSWER: one.answer}
            _write(file, write_example(features))
    return count


def read_records(path):
    """Yield the `Document` of each record, in the order of the file.

    Raises:
        ValueError: a damaged record, or one without ids: which file and which record.
    """
    for _, _, one in _records(path):
        yield one


class RecordFile(Sequence):
    """The documents of a TFRecord file in any order. It is read and checked once, when this is made.

    sizes: (n,) int64, tokens of each document.

    Raises:
        ValueError: a damaged record, or one without ids: which file and which record.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        found = [(start, length, len(one.ids)) for start, length, one in _records(path)]
        self._starts, self._lengths, self.sizes = np.array(found, np.int64).reshape(-1, 3).T

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, number):
        number = range(len(self))[number]
        length = int(self._lengths[number])
        data = np.fromfile(self.path, np.uint8, length, offset=int(self._starts[number]))
        if data.size < length:
            raise ValueError(f"{self.place(number)}: the file became shorter while it was used.")
        return _document(data.tobytes(), self.place(number))

    def place(self, number):
        """Where a document stands, for errors."""
        return _place(self.path, number)


def crc32c(data):
    """The CRC-32C of bytes; by `google-crc32c` where it is installed, which is a hundred times as fast."""
    return _crc32c()(data)


def _records(path):
    """(byte where the data begin, how many, `Document`) of each record."""
    size, number = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while head := file.read(HEAD.size):
            place = f"{_place(path, number)} (byte {file.tell() - len(head)})"
            length, check = HEAD.unpack(head) if len(head) == HEAD.size else (0, None)
            if check != _masked(head[:8]):
                raise _broken(place, "its length does not match the checksum" if check is not None else "it is cut off")
            start = file.tell()
            if start + length + FOOT.size > size:
                raise _broken(place, f"it has {length} bytes, and the file ends after {size - start}")
            data = file.read(length)
            if FOOT.unpack(file.read(FOOT.size))[0] != _masked(data):
                raise _broken(place, "its data do not match their checksum")
            yield start, length, _document(data, place)
            number += 1


def _document(data, place):
    """The `Document` in the bytes of an Example."""
    try:
        features = read_example(data)
    except ValueError as error:
        raise _broken(place, f"{error}: no tf.train.Example") from error
    if TEXT not in features:
        raise ValueError(printable(f"{place} has no int64 feature '{TEXT}'. It has: {', '.join(features) or 'none'}."))
    ids, answer = features[TEXT], features.get(ANSWER)
    if ids.size and not 0 <= ids.min() <= ids.max() < 2**31:
        raise ValueError(f"{place}: token ids lie in 0 .. 2147483647. Received: {ids.min()} .. {ids.max()}.")
    if answer is not None and len(answer) != len(ids):
        raise ValueError(f"{place}: '{ANSWER}' says which ids count. Received: {len(ids)} ids, {len(answer)} marks.")
    return Document(ids.astype(np.int32), None if answer is None else answer.astype(np.int32))


def _write(file, data):
    length = struct.pack("<Q", len(data))
    file.write(length + FOOT.pack(_masked(length)) + data + FOOT.pack(_masked(data)))


def _masked(data):
    """The checksum as TFRecord files store it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


def _place(path, number):
    return f"'{path}', record {number}"


def _broken(place, why):
    return ValueError(f"{place} cannot be read: {why}. Is it a TFRecord file, and was it copied whole?")


@cache
def _crc32c():
    """bytes -> CRC."""
    try:
        from google_crc32c import value
    except ImportError:
        return _by_table
    return value


@cache
def _table():
    """The CRC of each single byte."""
    crcs = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
        crcs.append(crc)
    return crcs


def _by_table(data):
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
