"""A kernel writes all of its results and nothing beside them, on any number of threads, and again after a fork."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.ops.kernels.library import library
from bert4keras_rwkv.ops.kernels.native import RECURRENCES
from tests.ops.kernels import guards

pytestmark = pytest.mark.backend_free
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("level", library().levels())
@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("dtype", [np.dtype("float32"), ml_dtypes.bfloat16])
@pytest.mark.parametrize(("T", "N"), [(1, 64), (33, 16), (18, 7)])
def test_results_are_whole_and_nothing_else_is_written(level, name, T, N, dtype, rng):
    here, given = library(), len(RECURRENCES[name].inputs)
    here.choose(level)
    try:
        guards.check(partial(here.run, threads=3), name, T, N, rng, dtypes=(dtype,) * given)
    finally:
        here.choose(here.levels()[0])


def work(seed):
    """The sum of y for inputs of a seed, on four threads."""
    rng, recurrence = np.random.default_rng(seed), RECURRENCES["wkv6"]
    of = guards.sizes(200, 64)
    inputs = [
        -abs(x) if i == 1 else x for i, x in enumerate(guards.arrays(rng, (*recurrence.inputs, recurrence.state), of))
    ]
    inputs += [np.zeros(0, "float32"), np.zeros(0, "uint8")]
    results = [np.empty(shape, "float32") for shape in recurrence.results(of, keep=False)]
    library().run("wkv6", guards.described(inputs), guards.described(results), threads=4)
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
