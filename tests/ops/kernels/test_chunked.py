"""Kernels of a GPU by chunks on tensor cores, run by an emulator: they are the loop in float64, and wait.

Tolerances are of the largest number of a result. With inputs of float32 every operand of a product is the sum of two
bfloat16, which together have 16 bits: 2e-5. With inputs of bfloat16 it is one, of 8 bits: 2^-9 of each summand is lost,
and 4 / 2^9 of the sum at most, 8e-3. Gradients are made of such results, and get twice as much.
"""

import re
import shutil

import numpy as np
import pytest

from bert4keras_rwkv.ops.kernels import cuda, library
from bert4keras_rwkv.ops.kernels.native import ABSENT, CHUNK
from tests.ops.kernels import numpy_loops
from tests.ops.kernels.chunked import Kernel, inputs

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not library.SOURCES.is_dir(), reason="no sources"),
]
NAMES = ["wkv6", "wkv7"]
TOLERANCE = {"float": 2e-5, "bf16": 8e-3}
# T, decay, masks: one token; chunks and groups of them that are not full; documents in the middle; decays at both ends.
CASES = [(1, "any", True), (23, -0.61, False), (70, "any", True), (33, -60.0, False), (70, -1e-6, True)]
SEEDS = range(4)  # of the order in which threads run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chunked")


def given(flags, start, like):
    """Flags and start for the loop."""
    B, T = like[0].shape[:2]
    return np.zeros((B, T), "uint8") if flags is None else flags, np.zeros(like[1].shape) if start is None else start


def compare(got, want, tolerance):
    assert np.max(np.abs(got - want)) <= tolerance * max(np.max(np.abs(want)), 1e-30)


def compare_forward(kernel, xs, state, start, flags, seed=0):
    """Returns what the gradient needs."""
    y, last, *kept = kernel.forward(seed, xs, state, start, flags)
    marks, begin = given(flags, start, (xs[0], state))
    want_y, want_last, found, _, reads = numpy_loops.forward(xs, state, begin, marks)
    here = (marks & ABSENT) == 0
    tolerance = TOLERANCE[kernel.inputs]
    compare(y[here], want_y[here], tolerance)
    compare(last, want_last, tolerance)
    compare(kept[0], np.stack(found[::CHUNK], 2), tolerance)
    for x in kept[1:]:
        compare(x, reads, tolerance)
    return kept


@pytest.mark.parametrize(
    ("N", "columns", "kind"),
    [(16, 16, "float"), (48, 16, "float"), (64, 64, "float"), (32, 16, "bf16"), (64, 64, "bf16")],
)
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_loop(name, N, columns, kind, folder, rng):
    """Outputs, the last state and what is kept, whatever the decays; only results are written."""
    kernel = Kernel(folder, name, "forward", N, columns, kind)
    for T, decay, masks in CASES:
        compare_forward(kernel, *inputs(rng, name, T, N, decay, masks))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_asked_for_is_not_written(name, folder, rng):
    """Nor do the results change."""
    kernel = Kernel(folder, name, "forward", 16, 16)
    given = inputs(rng, name, 37, 16)
    for got, want in zip(kernel.forward(0, *given, keep=False), kernel.forward(0, *given)[:2], strict=True):
        np.testing.assert_array_equal(got, want)


def slopes_like(rng, xs, state):
    return [rng.standard_normal(x.shape).astype("float32") for x in (xs[0], state)]


@pytest.mark.parametrize(
    ("N", "kind"), [(16, "float"), (48, "float"), pytest.param(32, "bf16", marks=pytest.mark.slow), (64, "bf16")]
)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_the_loop(name, N, kind, folder, rng):
    """Of all inputs, of the state and of the start; only results are written."""
    forward, gradient = (Kernel(folder, name, part, N, N, kind, kind) for part in ("forward", "gradient"))
    for T, decay, masks in CASES:
        xs, state, start, flags = inputs(rng, name, T, N, decay, masks)
        kept = compare_forward(forward, xs, state, start, flags)
        dy, dlast = slopes_like(rng, xs, state)
        got = gradient.gradient(0, xs, state, start, flags, kept, dy, dlast)
        marks, begin = given(flags, start, (xs[0], state))
        want = numpy_loops.gradient(xs, state, begin, marks, dy, dlast)
        for x, y in zip(got, want[: len(got)], strict=True):
            compare(x, y, 2 * TOLERANCE[kind])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_loop_is_its_slope(name, rng):
    """What `numpy_loops` gives, by differences. 1e-7: of two numbers, 2e-5 apart, with 16 digits."""
    xs, state, start, flags = inputs(rng, name, 9, 3)
    tensors = [x.astype("float64") for x in (*xs, state, start)]
    dy, dlast = slopes_like(rng, xs, state)

    def total(tensors):
        y, last, *_ = numpy_loops.forward(tensors[:-2], *tensors[-2:], flags)
        return np.sum(y * dy) + np.sum(last * dlast)

    for i, slope in enumerate(numpy_loops.gradient(tensors[:-2], *tensors[-2:], flags, dy, dlast)):
        step = 1e-5 * rng.standard_normal(slope.shape)
        ends = [total([*tensors[:i], tensors[i] + sign * step, *tensors[i + 1 :]]) for sign in (1, -1)]
        assert ends[0] - ends[1] == pytest.approx(2 * np.sum(slope * step), rel=1e-5, abs=1e-7)


def without_barriers(name, part, folder):
    """Sources without one of the barriers of a part, each in turn."""
    for file in (cuda.SOURCES[f"{name}_chunked"], "chunked.h"):
        text = (library.SOURCES / file).read_text()
        begin = text.index(f"#ifdef {part.upper()}")
        end = text.index("#endif", begin)
        for found in re.finditer(r"__syncthreads\(\);", text[begin:end]):
            sources = folder / f"{name}-{part}-{file}-{found.start()}"
            shutil.copytree(library.SOURCES, sources)
            (sources / file).write_text(text[: begin + found.start()] + text[begin + found.end() :])
            yield sources


def is_caught(kernel, run):
    """Whether results are not numbers, or others in another order of threads."""
    results = [run(kernel, seed) for seed in SEEDS]
    same = all(np.array_equal(x, y) for other in results for x, y in zip(other, results[0], strict=True))
    return not same or not all(np.isfinite(x).all() for x in results[0])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("wkv6", "forward"),
        ("wkv6", "gradient"),
        pytest.param("wkv7", "forward", marks=pytest.mark.slow),
        pytest.param("wkv7", "gradient", marks=pytest.mark.slow),
    ],
)
def test_every_barrier_is_needed(name, part, folder, tmp_path, rng):
    """As it is the results are the same in every order of threads, and without any one of the barriers they are not."""
    N, given = 32, inputs(rng, name, 70, 32)
    slopes = slopes_like(rng, given[0], given[1])
    _, _, *kept = Kernel(folder, name, "forward", N, N).forward(0, *given)

    def run(kernel, seed):
        return kernel.forward(seed, *given) if part == "forward" else kernel.gradient(seed, *given, kept, *slopes)

    assert not is_caught(Kernel(folder, name, part, N, N), run)
    for broken in without_barriers(name, part, tmp_path):
        assert is_caught(Kernel(folder, name, part, N, N, sources=broken), run)
