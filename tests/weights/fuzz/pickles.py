"""Checkpoints from a grammar of opcodes, and zips around them that say several things at once."""

import io
import struct
import zipfile

from tests.weights.fuzz.opcodes import build, deep, doubled, number, numbers, storage, tensor, text, tuple_of, view
from tests.weights.fuzz.values import TEXTS, damaged, edge

GLOBALS = (
    b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter",
    b"torch\nFloatStorage", b"torch\nByteStorage", b"torch\nSize", b"builtins\neval", b"os\nsystem", b"posix\nsystem",
    b"numpy\nndarray", b"torch.storage\n_load_from_bytes", b"builtins\ngetattr", b"copyreg\n_reconstructor",
)  # fmt: skip
RAW = tuple(bytes([code]) for code in range(256))


def value(rng, levels=4):
    """Something that leaves one value on the stack, mostly."""
    kind = rng.randrange(16) if levels else rng.randrange(5)
    if kind < 2:
        return number(max(min(edge(rng), 1 << 500), -(1 << 500)))
    if kind == 2:
        return text(rng.choice(TEXTS))
    if kind == 3:
        return rng.choice((b"N", b"\x88", b"\x89", b"}", b"]", b")", b"G" + bytes(8), b"C\x03abc"))
    if kind == 4:
        return b"h" + bytes([rng.randrange(6)])
    if kind == 5:
        return tuple_of(*(value(rng, levels - 1) for _ in range(rng.randrange(4))))
    if kind == 6:
        return b"](" + b"".join(value(rng, levels - 1) for _ in range(rng.randrange(4))) + b"e"
    if kind == 7:
        return b"}(" + b"".join(value(rng, levels - 1) for _ in range(2 * rng.randrange(3))) + b"u"
    if kind == 8:
        return b"c" + rng.choice(GLOBALS) + b"\n"
    if kind == 9:
        return b"c" + rng.choice(GLOBALS) + b"\n" + value(rng, levels - 1) + b"R"
    if kind == 10:
        return value(rng, levels - 1) + build(
            **{rng.choice(("shape", "strides", "offset", "size", "x")): value(rng, levels - 1)}
        )
    if kind == 11:
        return value(rng, levels - 1) + b"q" + bytes([rng.randrange(6)])
    if kind == 12:
        return rng.choice((doubled, deep))(rng.choice((3, 40, 100)))
    if kind == 13:
        return value(rng, levels - 1) + rng.choice(RAW) + value(rng, levels - 1)
    if kind == 14:
        return value(rng, levels - 1) + b"Q"
    return a_view(rng)


def a_view(rng, wild=0.5, size=8):
    """A tensor, mostly one that may be."""
    key = rng.choice(("0", "0", "1", "2", "../0")) if rng.random() < wild else "0"
    if rng.random() > wild:
        rows = rng.choice((1, 2, 4))
        return view(key, size, rng.randrange(3), [rows, 2], rng.choice(([2, 1], [1, 2], [0, 1], [1, 1])))
    dims = rng.randrange(10)
    shape, strides = ([abs(edge(rng)) if rng.random() < 0.3 else rng.randrange(4) for _ in range(dims)] for _ in "ab")
    kind = rng.choice(("FloatStorage", "HalfStorage", "ByteStorage", "LongStorage", "QInt8Storage"))
    parts = (
        storage(key, edge(rng) if rng.random() < 0.3 else size, kind),
        number(edge(rng)),
        numbers(shape),
        numbers(strides),
    )
    return tensor(*(part if rng.random() < 0.9 else value(rng, 1) for part in parts))


def pickled(rng):
    """A pickle of a dict of tensors, with other things among them, more or less."""
    items, wild = [], rng.choice((0, 0.1, 0.5))
    for place in range(rng.randrange(1, 6)):
        key = rng.choice((value(rng, 2), doubled(40), deep(300))) if rng.random() < wild / 2 else text(f"t{place}")
        items += [key, value(rng) if rng.random() < wild else a_view(rng, wild)]
        if rng.random() < wild / 2:  # the tensor as something else than was checked
            items.append(build(shape=numbers([64, 64]), strides=numbers([edge(rng) % 9999, edge(rng) % 9999])))
    head = b"\x80\x04" if rng.random() < wild else b"\x80\x02"
    start = (
        rng.choice((b"](", b"", b"("))
        if rng.random() < wild / 5
        else rng.choice((b"}(", b"ccollections\nOrderedDict\n)R("))
    )
    return (
        head + start + b"".join(items) + b"u" + (build(_metadata=value(rng, 2)) if rng.random() < wild else b"") + b"."
    )


def zipped(rng):
    """The bytes of a `.pth`: a zip whose directory and members may disagree."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        members = [
            ("archive/data.pkl", pickled(rng)),
            ("archive/data/0", bytes(range(65, 97))),
            ("archive/data/1", b"B" * 64),
        ]
        members += rng.sample(
            [("archive/byteorder", rng.choice((b"little", b"big", b"\x1b[0m"))), ("archive/version", b"3\n")], 1
        )
        for name, data in members:
            way = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
            archive.writestr(
                name if rng.random() > 0.03 else rng.choice((members[0][0], "b/data.pkl", "../data/0")), data, way
            )
        archive.comment = b"c" * rng.choice((0, 0, 0, 65535))
    data = bytearray(memory.getvalue())
    for signature, fields in (
        (b"PK\x01\x02", range(4, 46, 2)),
        (b"PK\x03\x04", range(4, 30, 2)),
        (b"PK\x05\x06", range(4, 22, 2)),
    ):
        at = data.find(signature, rng.randrange(len(data)))
        if at >= 0 and rng.random() < 0.15:
            struct.pack_into("<H", data, at + rng.choice(fields), rng.choice((0, 1, 8, 64, 0xFFFF)))
    return bytes(data) if rng.random() < 0.9 else damaged(rng, data)


def legacy(rng):
    """The same in the older container."""
    head = b"".join((
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02M\xe9\x03.",
        b"\x80\x02}" + text("little_endian") + (b"\x88" if rng.random() < 0.9 else value(rng, 2)) + b"s.",
    ))  # fmt: skip
    keys = b"](" + text("0") + (text("1") if rng.random() < 0.2 else b"") + b"e" if rng.random() < 0.8 else value(rng)
    sizes = (rng.choice((8, 8, 8, edge(rng) & 0xFFFFFFFFFFFFFFFF)) for _ in "ab")
    runs = b"".join(struct.pack("<Q", size) + bytes(range(65, 97)) for size in sizes)
    data = head + pickled(rng).replace(b"tQ", b"NtQ") + b"\x80\x02" + keys + b"." + runs
    return data if rng.random() < 0.8 else damaged(rng, data)
