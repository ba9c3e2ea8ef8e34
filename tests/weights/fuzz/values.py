"""Values that are nearly right: numbers at the edges of types, texts and JSON that few programs write."""

import json

EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    *((1 << n) + d for n in (31, 32, 62, 63, 64) for d in (-2, -1, 0)),
)
TEXTS = (
    "",
    "a",
    "..",
    "../x",
    "/etc/hostname",
    "a\nb",
    "\x1b[31m",
    "\0",
    "\u202e",
    "é",
    "\ud800",
    "n" * 600,
    "n" * 70_000,
    "model.",
    "blocks.0",
)


def edge(rng):
    """A whole number, often at an edge, sometimes negative, seldom huge."""
    number = rng.choice(EDGES) + rng.choice((0, 0, 0, -1, 1))
    return rng.choice((number, number, number, -number, number * 10**40, 4))


def strange(rng, levels=3):
    """Any JSON value."""
    kind = rng.randrange(9 if levels else 6)
    if kind < 2:
        return edge(rng)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice((None, True, False, 0.5, -1e300, float("inf"), float("nan"), 1e-320))
    if kind == 6:
        return [strange(rng, levels - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(TEXTS): strange(rng, levels - 1) for _ in range(rng.randrange(4))}
    value = strange(rng, 0)
    for _ in range(rng.choice((5, 60, 70, 900))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def changed(rng, value, chance=0.5):
    """JSON like `value` with something in it in another way."""
    if rng.random() > chance and isinstance(value, dict) and value:
        name = rng.choice(list(value))
        result = dict(value)
        what = rng.randrange(5)
        if what == 0:
            del result[name]
        elif what == 1:
            result[rng.choice(TEXTS) if rng.random() < 0.5 else name + "x"] = result[name]
        elif what == 2:
            result[rng.choice(list(value))] = result[name]
        else:
            result[name] = changed(rng, value[name], chance)
        return result
    if rng.random() > chance and isinstance(value, list) and value:
        place = rng.randrange(len(value))
        return [*value[:place], changed(rng, value[place], chance), *value[place + rng.randrange(2) :]]
    return strange(rng)


def json_bytes(rng, value):
    """A JSON text, at times not quite one."""
    try:
        data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except RecursionError:
        data = b"[" * 5000
    what = rng.randrange(16)
    if what == 0:
        return data.replace(b":", b": " + b"[" * rng.choice((10, 100, 100_000)), 1)
    if what == 1 and data.endswith(b"}"):  # every key twice
        return data[:-1] + b"," + data[1:]
    if what == 2:
        return data.replace(b"1", b"1" * rng.choice((30, 5000)), 1)
    if what == 3:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" " * 3000, b"")) + data
    return data if what > 4 else damaged(rng, data)


def damaged(rng, data):
    """Bytes with a few others in them, or cut off."""
    data, same = bytearray(data), rng.random() < 0.7  # same: of the same length, so that what is behind is found
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 256) + 1)
        piece = rng.choice(
            (b"", b"\0", b"\xff", b"\xff" * 8, b"\x7f\0\0\0", b"\x01", b"-1", bytes([rng.randrange(256)]))
        )
        data[at : at + (len(piece) if same else rng.randrange(9))] = piece
    return bytes(data if same or rng.random() < 0.8 else data[: rng.randrange(len(data) + 1)])
