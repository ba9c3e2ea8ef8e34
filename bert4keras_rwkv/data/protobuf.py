"""The few parts of the protobuf wire format that a `tf.train.Example` of integers needs.

Example {1: Features {1: map entry {1: name, 2: Feature {3: Int64List {1: packed varints}}}}}. Source:
https://protobuf.dev/programming-guides/encoding and tensorflow/core/example/feature.proto.
"""

import numpy as np

VARINT, EIGHT_BYTES, SIZED, FOUR_BYTES = 0, 1, 2, 5
WIDTHS = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
INT64_LIST = 3
LONGEST_VARINT = 10


def write_example(features):
    """The bytes of an Example of int64 features. features: {name: (n,) integers}."""
    entries = []
    for name, values in sorted(features.items()):
        int_list = _sized(1, write_varints(values))
        entries.append(_sized(1, _sized(1, name.encode()) + _sized(2, _sized(INT64_LIST, int_list))))
    return _sized(1, b"".join(entries))


def read_example(data):
    """{name: (n,) int64} of the int64 features of an Example; those of other kinds are left out.

    Raises:
        ValueError: the bytes are no Example.
    """
    found = {}
    for features in _each(data, 1):
        for entry in _each(features, 1):
            name = b"".join(_each(entry, 1)).decode("utf-8", "replace")
            for feature in _each(entry, 2):
                for int_list in _each(feature, INT64_LIST):
                    found[name] = _integers(int_list)
    return found


def write_varints(values):
    """Integers (n,) as packed varints."""
    values = np.asarray(values, np.int64).view(np.uint64)
    width = max((int(values.max()).bit_length() + 6) // 7, 1) if values.size else 0
    shifted = values[:, None] >> (7 * np.arange(width + 1, dtype=np.uint64))
    more = shifted[:, 1:] > 0  # bytes follow
    kept = np.ones((len(values), width), bool)
    kept[:, 1:] = shifted[:, 1:-1] > 0
    return ((shifted[:, :-1] & 127).astype(np.uint8) | (more.astype(np.uint8) << 7))[kept].tobytes()


def read_varints(data):
    """Packed varints as (n,) int64."""
    data = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(data < 128)
    if data.size and (not ends.size or ends[-1] != data.size - 1):
        raise ValueError("a number in it does not end")
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    values = np.zeros(len(ends), np.uint64)
    longest = int(lengths.max(initial=0))
    if longest > LONGEST_VARINT:
        raise ValueError("a number in it is longer than 64 bits")
    for place in range(longest):
        there = lengths > place
        values[there] |= (data[starts[there] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return values.view(np.int64)


def _sized(number, data):
    """A field of bytes."""
    return bytes([number << 3 | SIZED]) + write_varints([len(data)]) + data


def _integers(int_list):
    """The numbers of an Int64List, packed or one by one."""
    parts = [np.zeros(0, np.int64)]
    for number, kind, value in _fields(int_list):
        if number == 1:
            parts.append(read_varints(value) if kind == SIZED else np.array([value], np.uint64).view(np.int64))
    return np.concatenate(parts)


def _each(data, wanted):
    """The bytes of each field `wanted`."""
    return [value for number, kind, value in _fields(data) if number == wanted and kind == SIZED]


def _fields(data):
    """(number, wire type, value) of each field; value is an int for a varint, else bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield key >> 3, kind, value
            continue
        if kind == SIZED:
            size, position = _varint(data, position)
        elif kind in WIDTHS:
            size = WIDTHS[kind]
        else:
            raise ValueError(f"it has a field of the unknown wire type {kind}")
        if position + size > len(data):
            raise ValueError("a field in it is longer than what holds it")
        yield key >> 3, kind, data[position : position + size]
        position += size


def _varint(data, position):
    """The number at a position, and the position behind it."""
    value = 0
    for place in range(LONGEST_VARINT):
        if position + place >= len(data):
            break
        byte = data[position + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value & (1 << 64) - 1, position + place + 1
    raise ValueError("a number in it does not end")
