"""Kernels of a GPU, run by an emulator: they are the loop, write what they should, and wait for each other.

With --gpu the card that is here runs them, but for what only the emulator shows.
"""

import shutil
import subprocess
from functools import partial
from types import SimpleNamespace

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops.kernels import cuda, library
from bert4keras_rwkv.ops.kernels.check import check_kernels, inputs
from bert4keras_rwkv.ops.kernels.native import CHUNK, RECURRENCES, native
from tests.ops.kernels import every_kernel, guards, quick
from tests.ops.kernels.card import Card
from tests.ops.kernels.no_numbers import same_ones_are_none
from tests.ops.kernels.stand_in import HERE, emulated

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() not in ("jax", "torch"), reason="pure ops run there"),
    pytest.mark.skipif(not library.SOURCES.is_dir(), reason="no sources"),
]
NAMES = ["wkv4", "wkv6", "wkv7"]
SEEDS = range(4)  # of the order in which threads run


of_torch = pytest.mark.on("torch")  # where nothing is compiled for each shape


@pytest.mark.parametrize(
    "shape",
    [*(pytest.param(x, marks=of_torch) for x in ((2, 1, 1, 16), (1, 18, 1, 100), (1, 32, 2, 5))), (2, 37, 2, 24)],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_is_the_loop(name, shape, gpu):
    """Through JAX and PyTorch: outputs, all gradients, masks and document starts. 2e-5: as `check_kernels` says."""
    before = gpu.launches()
    findings = list(check_kernels(names=[name], shapes=[shape]))
    assert {finding.level for finding in findings} == {f"sm_{cuda.device().architecture}"}
    assert gpu.launches() > before
    assert not [finding for finding in findings if not finding.right], findings


@pytest.mark.on("torch")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("where", [0, 3, 4])
def test_no_number_passes_backwards_as_in_the_loop(where, masked, gpu, rng):
    """Of RWKV-4: NaN in k, u or the state."""
    before = gpu.launches()
    same_ones_are_none(where, np.nan, masked, rng)
    assert gpu.launches() > before


def names(card):
    """Of the kernels that were asked for: with their part and the dtype of their inputs."""
    return {(key.name, key.part, key.dtypes[0]) for key in card.keys}


@pytest.mark.parametrize("N", [32, pytest.param(64, marks=of_torch)])
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_bfloat16_goes_by_chunks(name, N, gpu):
    """On tensor cores, forward and backward, and is the loop; float32 does not. 2e-2 of the largest: the kernel rounds
    each operand of a product to 8 binary digits, as test_chunked.py says, and of the loop each gradient's term is.
    """
    findings = list(check_kernels(names=[name], shapes=[(2, 37, 2, N)], masks=["both"]))
    assert [finding.dtype for finding in findings] == ["float32", "bfloat16"]
    assert not [finding for finding in findings if not finding.right], findings
    by_chunks = {(f"{name}_chunked", part, "bf16") for part in ("forward", "gradient")}
    assert names(gpu) == {(name, part, "float") for part in ("forward", "gradient")} | by_chunks


@pytest.mark.cpu
@pytest.mark.on("torch")
def test_what_chunks_do_not_serve_goes_token_by_token(gpu):
    """Other head sizes and dtypes, short texts, one token, memory that begins beside 8 bytes, cards before sm_80."""

    def asked(T, N, dtype, off=0, keep=True):
        recurrence, of = RECURRENCES["wkv7"], guards.sizes(T, N)
        dtypes = [dtype, "float32", *[dtype] * 4]
        inputs = [np.zeros([of[x] for x in shape], kind) for shape, kind in zip(recurrence.inputs, dtypes, strict=True)]
        state, *results = [np.zeros(x, "float32") for x in ((2, 3, N, N), *recurrence.results(of, keep))]
        empty = np.zeros(0, "float32")
        first, *others = guards.described([*inputs, state, empty, empty.astype("uint8")])
        gpu.keys.clear()
        moved = np.zeros(inputs[0].nbytes + 8, "uint8")
        first = (moved.ctypes.data + off, *first[1:])
        cuda._call("rwkv_cuda_open", cuda.DRIVER.encode(), cuda._missing)  # nothing is known
        cuda.run("wkv7", [first, *others], guards.described(results), None)
        (key,) = gpu.keys
        return key.name, key.part

    half, by_token = ml_dtypes.bfloat16, ("wkv7", "forward")
    assert asked(16, 16, half) == asked(17, 64, half, keep=False) == ("wkv7_chunked", "forward")
    assert asked(15, 16, half) == asked(16, 24, half) == asked(16, 80, half) == asked(16, 16, "float32") == by_token
    assert asked(16, 16, half, off=4) == by_token
    assert asked(1, 16, half, keep=False) == ("wkv7", "step")
    gpu.major(7)
    assert asked(16, 16, half) == by_token


@pytest.mark.cpu
@pytest.mark.on("torch")
def test_copies_in_the_memory_of_a_card(gpu):
    """They give what the arrays themselves give; the numbers around a result come back with it, if there are any."""
    found = []
    for run in (gpu.run, partial(Card.run, gpu)):
        found.append(guards.check(run, "wkv6", 33, 24, np.random.default_rng(0)))
    for here, there in zip(*found, strict=True):
        np.testing.assert_array_equal(here, there)
    every_kernel.run_all(SimpleNamespace(run=run), ["wkv6"], [(33, 24, True, "float32")])


@pytest.mark.on("torch")
@pytest.mark.parametrize(
    ("T", "N", "keep"), [(1, 16, False), (1, 40, False), (33, 24, True), (18, 7, True), (18, 16, True), (5, 64, True)]
)
@pytest.mark.parametrize("name", NAMES)
def test_results_are_whole_and_the_same_in_every_order(name, T, N, keep, gpu):
    """Nothing beside them is written, and nothing is read before others have written it."""
    found, half = [], ml_dtypes.bfloat16
    for seed in SEEDS:
        gpu.seed(seed)
        dtypes = (
            [half, half if name == "wkv4" else "float32", *([half] * (4 if name == "wkv7" else 2))] if T == 18 else []
        )
        dtypes = dtypes[:2] if name == "wkv4" else dtypes
        found.append(guards.check(gpu.run, name, T, N, np.random.default_rng(0), keep, dtypes))
    for results in found[1:]:
        for x, y in zip(results, found[0], strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_one_token_has_a_kernel_of_its_own(name, gpu, rng):
    """Where no gradient is wanted. RWKV-4, whose channels stand alone, needs none. It is loaded once."""
    xs, state, _ = inputs(rng, name, (1, 1, 2, 40))
    for _ in range(2):
        native(name, xs, state)
    assert [key.part for key in gpu.keys] == ["forward" if name == "wkv4" else "step"]


def test_what_does_not_fit_is_refused(gpu):
    """By name, whatever Python gave: a dtype that a kernel was not compiled for would be read as another."""
    shapes = [(1, 2, 1, 8)] * 4 + [(1, 1, 8), (1, 1, 8, 8), (0,), (0,)]
    results = [(0, 0, (1, 2, 1, 8)), (0, 0, (1, 1, 8, 8)), (0, 0, (0,))]
    for dtypes, reason in (([0, 0, 1, 0], "wkv6 argument 2 has another dtype"), ([2, 0, 2, 2], "takes numbers")):
        given = [(0, dtype, shape) for dtype, shape in zip([*dtypes, 0, 0, 0, 2], shapes, strict=True)]
        with pytest.raises(ValueError, match=reason):
            cuda.run("wkv6", given, results, None)
    with pytest.raises(ValueError, match="no kernel wkv8"):
        cuda.run("wkv8", [], [], None)


def test_a_source_that_does_not_compile_is_quoted(card, tmp_path, monkeypatch, rng):
    sources = quick.changed_sources(tmp_path / "src", "port.h", "struct bf16 {", "struct bf16 (")
    card.install(monkeypatch, sources)
    xs, state, _ = inputs(rng, "wkv6", (1, 1, 1, 8))
    with pytest.raises(ValueError, match=r"wkv6: .*port\.h"):
        native("wkv6", xs, state)


@pytest.mark.on("torch")
@pytest.mark.parametrize("decay", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_rounded_to_the_nearest(name, decay, gpu, rng):
    """For inputs of bfloat16, with a decay of that or of float32, they are those of the same numbers, then rounded."""
    import torch

    xs, state, _ = inputs(rng, name, (1, 18, 2, 8))
    xs, state = [ops.convert_to_tensor(x).bfloat16() for x in xs], ops.convert_to_tensor(state)
    xs[1] = xs[1].to(getattr(torch, decay))
    found = []
    for given in (xs, [x.float() for x in xs]):
        given = [x.requires_grad_() for x in given]
        sum((x * x).sum() for x in native(name, given, state)).backward()
        found.append([x.grad for x in given])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=0)


MATRIX, WKV4 = "matrix_state.cu", "wkv4.cu"
# What is wrong, where, what stands there instead, and which recurrence shows it.
FAULTS = {
    "a token too few": (
        MATRIX,
        "t0 += STAGED) {\n    const int n = smaller(T - t0, STAGED);",
        "t0 += STAGED) {\n    const int n = smaller(T - t0 - 1, STAGED);",
        "wkv6",
    ),
    "a token too few, backwards": (MATRIX, "n = smaller(T - t0, CHUNK);", "n = smaller(T - t0 - 1, CHUNK);", "wkv7"),
    "a chunk whose states are those of another": (MATRIX, "copy(inner[g], S);", "copy(inner[0], S);", "wkv6"),
    "a mask dropped": (MATRIX, "key = there ? number(k[at])", "key = here ? number(k[at])", "wkv7"),
    "a mask dropped in a step": (MATRIX, "key = absent ? 0.f : number(k[at])", "key = number(k[at])", "wkv7"),
    "gradients of absent tokens": (
        MATRIX,
        "put(db + at + i, absent ? 0.f : total);",
        "put(db + at + i, total);",
        "wkv7",
    ),
    "a state turned": (MATRIX, "from[at(m, c)] : 0.f", "from[column(c) * N + row + m] : 0.f", "wkv7"),
    "a state turned in a step": (MATRIX, "last[matrix + i * N + j] =", "last[matrix + j * N + i] =", "wkv6"),
    "only the last gradient of the start": (
        MATRIX,
        "place.keep(G, dstart + matrix, true);",
        "place.keep(G, dstart + matrix, false);",
        "wkv6",
    ),
    "the state of another head": (
        MATRIX,
        "get(S, state + (wide)item * SQUARE, part, j);",
        "get(S, state + (wide)batch * SQUARE, part, j);",
        "wkv7",
    ),
    "the other half is added up": (
        "port.h",
        "mine = upper ? x[i + HALF] : x[i], other",
        "mine = upper ? x[i] : x[i + HALF], other",
        "wkv6",
    ),
    "the state read after it is written": (
        WKV4,
        "    float old, fresh;\n    shares(S.p, u + k, old, fresh);",
        "    float old, fresh;\n    S = written(S, k, v, w);\n    shares(S.p, u + k, old, fresh);",
        "wkv4",
    ),
    "a branch without a gradient": (WKV4, "d.k += slope + (ahead ? 0.f : g.p);", "d.k += slope;", "wkv4"),
}
BARRIER = "__syncthreads();"


def is_found(name, sources, card, monkeypatch):
    """Whether the comparison with the loop, in some order of threads, sees that a kernel is wrong."""
    card.install(monkeypatch, sources)
    for seed in SEEDS:
        card.seed(seed)
        findings = check_kernels(names=[name], shapes=[(9, 1, 1, 24), (2, 37, 2, 24)], masks=["both"])
        if not all(finding.right for finding in findings):
            return True
    return False


@pytest.mark.on("torch")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, card, tmp_path, monkeypatch):
    *change, name = FAULTS[fault]
    assert is_found(name, quick.changed_sources(tmp_path / "src", *change), card, monkeypatch)


@pytest.mark.cpu
@pytest.mark.on("torch")
@pytest.mark.parametrize("number", range((library.SOURCES / MATRIX).read_text().count(BARRIER)))
def test_a_barrier_that_is_missing_is_found(number, card, tmp_path, monkeypatch):
    sources = tmp_path / "src"
    shutil.copytree(library.SOURCES, sources)
    first, *others = (sources / MATRIX).read_text().split(BARRIER)
    others = [("" if i == number else BARRIER) + part for i, part in enumerate(others)]
    (sources / MATRIX).write_text(first + "".join(others))
    assert is_found("wkv7", sources, card, monkeypatch)


def words(part, delta, T, N, B=1, H=2):
    """What `emulated_main.cc` is to give a kernel, and how many threads it has."""
    each, state, kept = B * T * H * N, B * H * N * N, B * H * -(-T // CHUNK) * N * N
    given = [f"b{each}", f"w{each}", *[f"b{each}"] * (4 if delta else 2), *([] if delta else [f"f{B * H * N}"])]
    given += [f"f{state}", f"f{state}", f"u{B * T}"]
    reads = [f"f{each}"] if delta else []
    if part == "gradient":
        slopes = [f"O{each}", f"o{each}", *[f"O{each}"] * (4 if delta else 2), *([] if delta else [f"o{B * H * N}"])]
        given += [f"f{kept}", *reads, f"f{each}", f"f{state}", *slopes, f"o{state}", f"o{state}"]
    else:
        given += [
            f"o{each}",
            f"o{state}",
            "0" if part == "step" else f"o{kept}",
            *["0" if part == "step" else x.replace("f", "o") for x in reads],
        ]
    return [*given, f"i{T}", f"i{H}"]


# The head size and, for two heads, blocks and threads of each part: geometry.h.
LAYOUTS = {
    "": (24, {"forward": (2, 96), "step": (4, 256), "gradient": (2, 64)}),
    "_chunked": (32, {"forward": (2, 64), "gradient": (2, 64)}),
}


@pytest.mark.cpu
@pytest.mark.slow
@pytest.mark.on("torch")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize(("form", "part"), [(form, part) for form, (_, parts) in LAYOUTS.items() for part in parts])
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_sanitizers_see_nothing(sanitizer, name, form, part, tmp_path):
    """Each thread of a block is one of the system; and without barriers a race is seen."""
    N, layouts = LAYOUTS[form]
    file, options = cuda.SOURCES[name + form], cuda.Key(name + form, part, N, ("bf16", "float"), 90).options()
    more = "-O1", "-g", "-DEMU_THREADS", f"-fsanitize={sanitizer}", "-pthread", HERE / "emulated_main.cc"
    given = ["0", *map(str, layouts[part]), *words(part, name == "wkv7", 1 if part == "step" else 18, N)]

    def run(sources):
        program = tmp_path / "program"
        emulated(file, part, options, program, *more, sources=sources)
        # Without the random places of memory, for which this sanitizer was not made.
        return subprocess.run([shutil.which("setarch"), "-R", program, *given], capture_output=True, text=True)

    done = run(library.SOURCES)
    assert done.returncode == 0 and not done.stderr, done.stderr
    if sanitizer == "thread":
        sources = tmp_path / "src"
        shutil.copytree(library.SOURCES, sources)
        for path in (sources / file, sources / "chunked.h"):
            path.write_text(path.read_text().replace(BARRIER, ""))
        assert "data race" in run(sources).stderr
