"""A kernel writes all of its results and nothing beside them, on any number of threads, and again after a fork."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.ops.kernels.library import library
from bert4keras_rwkv.ops.kernels.native import CHUNK, RECURRENCES

pytestmark = pytest.mark.backend_free
ROOT = Path(__file__).resolve().parents[3]
GUARD = 64  # numbers before and after each result
DTYPES = {"float32": 0, "bfloat16": 1, "uint8": 2}  # as in src/tensors.h


def sizes(T, N):
    return {"B": 2, "T": T, "H": 3, "N": N, "D": 3 * N, "C": -(-T // CHUNK), "3": 3}


def arrays(rng, letters, of):
    return [rng.standard_normal([of[x] for x in shape]).astype("float32") for shape in letters]


def described(arrays):
    return [(x.ctypes.data, DTYPES[str(x.dtype)], x.shape) for x in arrays]


def guarded(shape, dtype="float32"):
    """An array full of NaN amid more of them; returns the whole and the array."""
    whole = np.full(int(np.prod(shape)) + 2 * GUARD, np.nan, dtype)
    return whole, whole[GUARD : len(whole) - GUARD].reshape(shape)


@pytest.mark.parametrize("level", library().levels())
@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("dtype", [np.dtype("float32"), ml_dtypes.bfloat16])
@pytest.mark.parametrize(("T", "N"), [(1, 64), (33, 16), (18, 7)])
def test_results_are_whole_and_nothing_else_is_written(level, name, T, N, dtype, rng):
    here, recurrence, of = library(), RECURRENCES[name], sizes(T, N)
    letters = (*recurrence.inputs, recurrence.state, recurrence.state)
    inputs = [-abs(x) if i == 1 else x for i, x in enumerate(arrays(rng, letters, of))]
    inputs = [x.astype(dtype) if i < len(recurrence.inputs) else x for i, x in enumerate(inputs)]
    inputs.append((rng.random((2, T)) > 0.7).astype("uint8") * rng.integers(1, 3, (2, T), dtype="uint8"))
    before = [x.copy() for x in inputs]
    made = [guarded(shape) for shape in recurrence.results({**of}, keep=True)]
    here.choose(level)
    try:
        here.run(name, described(inputs), described([x for _, x in made]), threads=3)
        more = [*inputs, *(x for _, x in made[2:]), *arrays(rng, (recurrence.y, recurrence.state), of)]
        slopes = [guarded(x.shape, x.dtype) for x in inputs[:-1]]
        here.run(f"{name}_gradient", described(more), described([x for _, x in slopes]), threads=3)
    finally:
        here.choose(here.levels()[0])
    for whole, inside in (*made, *slopes):
        assert np.isfinite(inside.astype("float32")).all()
        assert np.isnan(np.concatenate([whole[:GUARD], whole[-GUARD:]]).astype("float32")).all()
    for x, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, was)


def work(seed):
    """The sum of y for inputs of a seed, on four threads."""
    rng, recurrence = np.random.default_rng(seed), RECURRENCES["wkv6"]
    of = sizes(200, 64)
    inputs = [-abs(x) if i == 1 else x for i, x in enumerate(arrays(rng, (*recurrence.inputs, recurrence.state), of))]
    inputs += [np.zeros(0, "float32"), np.zeros(0, "uint8")]
    results = [np.empty(shape, "float32") for shape in recurrence.results(of, keep=False)]
    library().run("wkv6", described(inputs), described(results), threads=4)
    return float(results[0].sum(dtype="float64"))


FORKED = """
import multiprocessing
from tests.ops.kernels.test_memory import work

here = work(1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, [1, 1]) == [here, here])
"""


def test_a_forked_process_has_threads_of_its_own():
    """In a process without JAX, which warns of forks."""
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr
