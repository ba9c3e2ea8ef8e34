"""The pickle of a `.pth` is data: what it described and was checked stays as it is, and costs no more than it holds."""

import time
import warnings
import zipfile

import numpy as np
import pytest

from bert4keras_rwkv.weights import WeightsError
from bert4keras_rwkv.weights.formats.pth import open_pth
from tests.weights.fuzz.opcodes import (
    build,
    checkpoint,
    deep,
    doubled,
    number,
    numbers,
    storage,
    tensor,
    text,
    tuple_of,
    view,
    write_zip,
)

pytestmark = pytest.mark.backend_free

FOUR = np.arange(4, dtype="<f4").tobytes()
SQUARE = view("0", 4, 0, [2, 2], [2, 1])
PARAMETER = b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(SQUARE, b"\x88", b"ccollections\nOrderedDict\n)R") + b"R"


def reaching(strides):
    """State for a `View` that puts it outside its storage."""
    return build(shape=numbers([64, 64]), strides=numbers(strides), offset=number(1 << 20))


CHANGED = {
    "a view": text("x") + SQUARE + reaching([-500, 501]),
    "a view, far outside": text("x") + SQUARE + reaching([-5000, 5001]),
    "a parameter": text("x") + PARAMETER + reaching([-500, 501]),
    "a storage": text("x")
    + tensor(storage("0", 4) + build(size=number(1 << 40)), number(0), numbers([1 << 20]), numbers([1])),
    "slots": text("x") + SQUARE + tuple_of(b"N", b"}(" + text("shape") + numbers([1 << 20]) + b"u") + b"b",
    "a function": text("x") + b"ctorch._utils\n_rebuild_tensor_v2\n" + build(__code__=b"N"),
    "a text": text("x") + text("y") + build(x=b"N"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_nothing_that_was_checked_can_be_changed(tmp_path, name):
    """BUILD would set attributes of it. Torch uses it for the `_metadata` of an OrderedDict and for nothing else."""
    write_zip(tmp_path / "a.pth", checkpoint(CHANGED[name]), {"0": FOUR})
    with pytest.raises(WeightsError, match="BUILD") as error:
        open_pth(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(error.value)


def test_the_metadata_of_an_ordered_dict_is_passed_over(tmp_path):
    """`state_dict()` has one. It may call itself what it likes."""
    pickled = (
        b"\x80\x02ccollections\nOrderedDict\n)R("
        + text("x")
        + SQUARE
        + b"u"
        + build(_metadata=b"}", keys=b"N", x=b"N")
        + b"."
    )
    write_zip(tmp_path / "a.pth", pickled, {"0": FOUR})
    with open_pth(tmp_path / "a.pth") as tensors:
        np.testing.assert_array_equal(tensors["x"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "changes", [{"strides": (-500, 501)}, {"shape": (64, 64)}, {"offset": 1 << 40}, {"strides": (1 << 62, 1)}]
)
def test_bounds_are_checked_where_memory_is_touched(tmp_path, changes):
    """Even if a view were changed behind the reader's back: what is read is the file, or nothing."""
    write_zip(tmp_path / "a.pth", checkpoint(text("x"), view("0", 4, 0, [2, 2], [1, 2])), {"0": FOUR})
    with open_pth(tmp_path / "a.pth") as tensors:
        read = tensors.entry("x").read
        (seen,) = (cell.cell_contents for cell in read.__closure__ if hasattr(cell.cell_contents, "strides"))
        for name, value in changes.items():
            object.__setattr__(seen, name, value)
        with pytest.raises(ValueError):
            read()


def persistent(*parts):
    return checkpoint(text("x"), tuple_of(*parts) + b"Q")


FLOATS, NOWHERE = b"ctorch\nFloatStorage\n", text("cpu")
BOMB = doubled(40)
UNKNOWN = "unknown way"
BOMBS = {  # a pickle of a few hundred bytes -> what is said
    "a key": (checkpoint(BOMB, number(1)), "a tuple as a key"),
    "a key, deep": (checkpoint(deep(300), number(1)), "a tuple as a key"),
    "a fraction as a key": (checkpoint(b"G" + bytes(8), number(1)), "a float as a key"),
    "a key of many digits": (checkpoint(number(1 << 2000), number(1)), "as a key"),
    "a view as a key": (checkpoint(SQUARE, number(1)), "a View as a key"),
    "a kind": (persistent(BOMB, FLOATS, text("0"), NOWHERE, number(1)), UNKNOWN),
    "a dtype": (persistent(text("storage"), BOMB, text("0"), NOWHERE, number(1)), UNKNOWN),
    "a storage's key": (persistent(text("storage"), FLOATS, BOMB, NOWHERE, number(1)), UNKNOWN),
    "a place": (persistent(text("storage"), FLOATS, text("0"), BOMB, number(1)), UNKNOWN),
    "a size": (persistent(text("storage"), FLOATS, text("0"), NOWHERE, BOMB), UNKNOWN),
    "more of a storage": (checkpoint(text("x"), storage("0", 4, more=BOMB)), UNKNOWN),
    "an id": (checkpoint(text("x"), BOMB + b"Q"), UNKNOWN),
    "a shape": (checkpoint(text("x"), tensor(storage("0", 4), number(0), BOMB, numbers([1, 1]))), UNKNOWN),
    "a value": (checkpoint(text("x"), BOMB), "deeper or larger"),
    "a value, deep": (checkpoint(text("x"), deep(5000)), "deeper or larger"),
    "a value in itself": (checkpoint(text("x"), b"]q\x00h\x00a"), "deeper or larger"),
    "a text, many times": (
        checkpoint(text("x"), text("y" * 9999) + b"q\x000" + tuple_of(b"h\x00" * 9999)),
        "deeper or larger",
    ),
    "a global": (checkpoint(text("x"), BOMB + text("name") + b"\x93"), "STACK_GLOBAL"),
    "a call": (checkpoint(text("x"), b"ccollections\nOrderedDict\n" + BOMB + b"R"), "REDUCE"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_grows_beyond_what_is_there(tmp_path, name):
    """Nothing is hashed or printed before its depth and size are known."""
    pickled, message = BOMBS[name]
    write_zip(tmp_path / "a.pth", pickled, {"0": FOUR})
    began = time.perf_counter()
    with pytest.raises(WeightsError, match=message) as error:
        open_pth(tmp_path / "a.pth")
    assert time.perf_counter() - began < 5
    assert len(str(error.value)) < 2000


def test_a_pickle_of_too_many_opcodes(tmp_path, monkeypatch):
    monkeypatch.setattr("bert4keras_rwkv.weights.formats.pickled.MOST_OPCODES", 1000)
    write_zip(tmp_path / "a.pth", b"\x80\x02" + b"N0" * 1000 + b"}.")
    with pytest.raises(WeightsError, match="does not end within 64 MiB and 1000 opcodes"):
        open_pth(tmp_path / "a.pth")


def test_a_storage_is_of_one_kind(tmp_path):
    """Else a tensor checked as one dtype would be read as another."""
    write_zip(
        tmp_path / "a.pth",
        checkpoint(text("x"), view("0", 4, 0, [4], [1], "ByteStorage"), text("y"), SQUARE),
        {"0": FOUR},
    )
    with pytest.raises(WeightsError, match="describes the storage '0' in two ways"):
        open_pth(tmp_path / "a.pth")


def zipped(path, members, change=lambda data: data):
    """A zip of these (name, bytes), its bytes changed."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        for name, data in members:
            archive.writestr(name, data)
    path.write_bytes(change(path.read_bytes()))


GOOD = [("archive/data.pkl", checkpoint(text("x"), SQUARE)), ("archive/data/0", FOUR)]
SECOND = [("archive/data/1", FOUR)]


def pointing(data, members=b"archive/data/1", place=b"archive/data/0"):
    """The directory of a zip with the entry of one member leading to another."""
    entry, offset = data.rfind(members) - 46, data.find(place) - 30
    return data[: entry + 42] + offset.to_bytes(4, "little") + data[entry + 46 :]


ZIPS = {
    "two pickles of one name": ((*GOOD, GOOD[0]), {}, "two members of one name"),
    "two storages of one name": ((*GOOD, GOOD[1]), {}, "two members of one name"),
    "two pickles": ((*GOOD, ("other/data.pkl", GOOD[0][1])), {}, "2 data.pkl"),
    "one place for two": ((*GOOD, *SECOND), {"change": pointing}, "overlap"),
    "a place beyond the end": (
        GOOD,
        {"change": lambda data: data[: (at := data.rfind(b"archive/data/0") - 4)] + b"\xff\xff\0\0" + data[at + 4 :]},
        "cannot be read",
    ),
    "a member longer than the file": (
        GOOD,
        {"change": lambda data: data[: (at := data.rfind(b"archive/data/0") - 26)] + b"\0\0\1\0" * 2 + data[at + 8 :]},
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_says_one_thing(tmp_path, name):
    """What torch would read from it is what is read here; the directory leads to each byte once."""
    members, change, message = ZIPS[name]
    zipped(tmp_path / "a.pth", members, **change)
    with pytest.raises(WeightsError, match=message):
        open_pth(tmp_path / "a.pth")


def test_many_tensors_of_one_number_are_not_a_model(tmp_path):
    """Views with strides of 0 give each tensor the size of the file: a thousand of them, a thousand files."""
    items = (part for i in range(500) for part in (text(f"x{i}"), view("0", 4, 0, [9000], [0])))
    write_zip(tmp_path / "a.pth", checkpoint(*items), {"0": FOUR, "1": bytes(8000)})
    with pytest.raises(WeightsError, match="18000000 bytes"):
        open_pth(tmp_path / "a.pth")
