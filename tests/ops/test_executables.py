"""Executables that are kept: found again they compute the same bits, and nobody finds another's."""

import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from bert4keras_rwkv.ops import executables
from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.ops.executables import Description

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="executables are kept on JAX")
X = np.linspace(-2, 2, 7, dtype="float32")


def helper(x):
    return keras.ops.sin(x)


def other_helper(x):
    return keras.ops.cos(x)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    monkeypatch.setenv(executables.VARIABLE, str(folder))
    return folder


@pytest.fixture
def weight():
    return keras.Variable(np.full(7, 1.5, "float32"), name="weight")


def started(weight, parts=("first",)):
    """A program as a new process makes it. Its `traces` say how often it was traced."""
    traces = []

    def run(x, state):
        traces.append(1)
        return helper(x) * weight / 3 + state["a"], {"a": state["a"] + 1, "none": None}

    program = compiled(run, [weight], lambda: Description(parts, (__name__, "bert4keras_rwkv.generation.draw")))
    program.traces = traces
    return program


def call(program, x=X):
    y, state = program(x, {"a": np.ones(len(x), x.dtype)})
    return np.asarray(y), np.asarray(state["a"])


def entries(folder):
    return sorted(folder.glob("*"))


def test_the_second_start_neither_traces_nor_compiles_and_gives_the_same_bits(folder, weight):
    first, second = started(weight), started(weight)
    expected = call(first)
    assert len(first.traces) == 1 and len(entries(folder)) == 1
    np.testing.assert_array_equal(call(second), expected)
    weight.assign(weight * 2)  # weights are arguments, not constants
    np.testing.assert_array_equal(call(second), call(first))
    assert not second.traces


@pytest.mark.parametrize(
    "changed", ["parts", "dtype", "variable", "code", "option", "environment", "version", "processor"]
)
def test_what_could_be_another_program_is_another_entry(changed, folder, weight, monkeypatch):
    call(started(weight))
    parts, x = ("first",), X
    if changed == "parts":
        parts = ("second",)
    if changed == "dtype":
        x = X.astype("float16")
    if changed == "variable":
        weight = keras.Variable(np.full(7, 1.5, "float16"), dtype="float16")
    if changed == "code":
        monkeypatch.setitem(globals(), "helper", other_helper)
    if changed == "option":
        jax = pytest.importorskip("jax")
        before = jax.config.jax_default_matmul_precision
        jax.config.update("jax_default_matmul_precision", "highest")
    if changed == "environment":
        monkeypatch.setenv("LIBTPU_INIT_ARGS", "--x")
    if changed == "version":
        monkeypatch.setattr(executables, "__version__", "0.0.0")
    if changed == "processor":
        monkeypatch.setattr(executables, "_processor", lambda: ["another"])
    program = started(weight, parts)
    call(program, x)
    if changed == "option":
        jax.config.update("jax_default_matmul_precision", before)
    assert program.traces and len(entries(folder)) == 2


def test_a_new_shape_is_another_entry_of_the_same_program(folder, weight):
    weight = keras.Variable(1.5)
    program = started(weight)
    call(program), call(program, X[:3]), call(program)
    assert len(program.traces) == 2 and len(entries(folder)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "unknown"])
def test_a_damaged_entry_is_made_anew(damage, folder, weight, monkeypatch):
    keys, key_of = [], executables._key
    monkeypatch.setattr(executables, "_key", lambda *args: keys.append(key_of(*args)) or keys[-1])
    expected = call(started(weight))
    (path,) = entries(folder)
    data = path.read_bytes()
    if damage == "foreign":
        call(started(weight, ("second",)))
        (other,) = set(entries(folder)) - {path}
        other.rename(path)
    elif damage == "unknown":  # whole, and what this JAX cannot take
        path.write_bytes(hashlib.sha256(keys[0] + b"no pickle").digest() + b"no pickle")
    else:
        flipped = bytes([*data[:-1000], data[-1000] ^ 1, *data[-999:]])
        path.write_bytes({"truncated": data[: len(data) // 2], "flipped": flipped, "empty": b""}[damage])
    again = started(weight)
    np.testing.assert_array_equal(call(again), expected)
    assert again.traces and len(entries(folder)) == 1
    last = started(weight)
    np.testing.assert_array_equal(call(last), expected)
    assert not last.traces


def test_many_writers_at_once_leave_one_whole_entry(folder, weight):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(call, [started(weight) for _ in range(4)]))
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
    assert len(entries(folder)) == 1
    last = started(weight)
    np.testing.assert_array_equal(call(last), answers[0])
    assert not last.traces


@pytest.mark.parametrize("fault", ["no folder", "full", "others may write"])
def test_without_a_folder_it_goes_on_and_says_so_once(fault, folder, weight, monkeypatch, caplog):
    executables._say.cache_clear()
    if fault == "no folder":
        folder.write_text("a file")
    if fault == "full":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    if fault == "others may write":
        if not hasattr(os, "geteuid"):
            pytest.skip("a system without such permissions")
        folder.mkdir()
        folder.chmod(0o777)
    with caplog.at_level(logging.WARNING, "bert4keras_rwkv"):
        expected = call(started(weight))
        np.testing.assert_array_equal(call(started(weight)), expected)
    assert len(caplog.records) == 1 and executables.VARIABLE in caplog.text
    assert not folder.is_dir() or not entries(folder)


def test_switched_off_nothing_is_kept(tmp_path, weight, monkeypatch):
    monkeypatch.setenv(executables.VARIABLE, "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    call(started(weight))
    assert not entries(tmp_path)


def test_the_folder_stays_small(tmp_path):
    """Those used last stay; what a killed process left goes."""
    now = time.time()
    for age in range(5):
        path = tmp_path / f"{age}{executables.SUFFIX}"
        path.write_bytes(bytes(100))
        os.utime(path, (now - age, now - age))
    left, written, foreign = (tmp_path / name for name in ("a.unfinished", "b.unfinished", "of others"))
    for path in (left, written, foreign):
        path.write_bytes(bytes(1000))
    os.utime(left, (now - 2 * executables.ABANDONED,) * 2)
    executables._prune(tmp_path, 250)
    names = {path.name for path in entries(tmp_path)}
    assert names == {"0.program", "1.program", "b.unfinished", "of others"}
