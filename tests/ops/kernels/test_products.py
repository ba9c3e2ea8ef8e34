"""Products with packed matrices on a GPU, run by an emulator: rows are rounded as everywhere, and multiplied.

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

from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.ops.gradients import gradients
from bert4keras_rwkv.ops.kernels import check, cuda, library
from bert4keras_rwkv.ops.kernels.native import product
from bert4keras_rwkv.ops.matmul import Scheme, Slope, matmul, pack, product_for, rounded, tensors_of, unpack
from bert4keras_rwkv.packing import in_halves, unpacked
from tests.ops.kernels import every_kernel, guards, quick
from tests.ops.kernels.card import Card
from tests.ops.kernels.stand_in import HERE, emulated

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() not in ("jax", "torch"), reason="pure ops run there"),
    pytest.mark.skipif(not library.SOURCES.is_dir(), reason="no sources"),
]
of_torch = pytest.mark.on("torch")  # where nothing is compiled for each shape
HALF = np.dtype(ml_dtypes.bfloat16)
SCHEMES = [
    Scheme(16),
    Scheme(8),
    Scheme(8, group=64),
    Scheme(4),
    Scheme(4, group=64),
    Scheme(4, least=False),
    Scheme(4, group=None),
]
SEEDS = range(4)  # of the order in which threads run


def normal(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


def as_tensors(arrays):
    return {name: ops.convert_to_tensor(x) for name, x in arrays.items()}


def hard_rows(rng, R, inputs):
    """Rows of which units have halves between two numbers, zeros, tiny numbers, large ones, or all of one sign."""
    x = normal(rng, R, -(-inputs // 32), 32)
    halves = rng.integers(-127, 127, x.shape) + np.float32(0.5)
    halves[..., 0] = 127
    kinds = [halves * np.float32(2.0**-7), 0 * x, 1e-38 * x, 1e-31 * x, 3e-30 * x, 1e37 * x, abs(x), x]
    which = rng.integers(0, len(kinds), x.shape[:2])
    which.flat[: len(kinds)] = np.arange(min(len(kinds), which.size))
    x = np.choose(which[..., None], [kind.astype("float32") for kind in kinds])
    return np.ascontiguousarray(x.reshape(R, -1)[:, :inputs])


def round_rows(run, x, numbers):
    """The numbers, scales and sums of rows as `round_rows` gives them; it writes nothing else."""
    whole = np.full(len(x) * numbers // 32 * 40 + 2 * guards.GUARD, 7, "uint8")
    made = whole[guards.GUARD : -guards.GUARD].reshape(len(x), -1)
    run("round_rows", guards.described([x]), guards.described([made]))
    assert (whole[: guards.GUARD] == 7).all() and (whole[-guards.GUARD :] == 7).all()
    factors = made[:, numbers:].copy().view("float32")
    return made[:, :numbers].view("int8"), *np.split(factors, 2, axis=1)


def on_a_cpu(*given):
    library.library().run(*given, 1)


def rounded_rows(x):
    """x (R, inputs) as the kernel of a CPU rounds it, as floats."""
    numbers, scales, _ = round_rows(on_a_cpu, x, Scheme(8).numbers(x.shape[1]))
    return (numbers.reshape(*scales.shape, -1) * scales[..., None]).reshape(numbers.shape)[:, : x.shape[1]]


@pytest.mark.cpu
def test_rows_are_rounded_as_without_a_kernel(rng):
    """Bit for bit, but that XLA divides a scale by 127 with an error in the last bit."""
    x, inexact = hard_rows(rng, 9, 290), 2.0**-22 if keras.backend.backend() == "jax" else 0.0
    got = ops.convert_to_numpy(rounded(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(got, rounded_rows(x), rtol=inexact, atol=0)


@of_torch
@pytest.mark.parametrize("dtype", ["float32", HALF], ids=str)
def test_rows_are_rounded_as_on_a_cpu(dtype, gpu, rng):
    """Bit for bit; and a unit with a number that is infinite or none has a scale that is none."""
    x = hard_rows(rng, 5, 1100).astype(dtype)
    x[1, 40], x[2, 3], x[2, 1099] = np.inf, np.nan, -np.inf
    numbers, scales, sums = round_rows(gpu.run, x, 1152)
    want = round_rows(on_a_cpu, x, 1152)
    np.testing.assert_array_equal(scales, want[1])
    none = np.isnan(scales)
    assert np.argwhere(none).tolist() == [[1, 1], [2, 0], [2, 34]]
    np.testing.assert_array_equal(sums[~none], want[2][~none])
    np.testing.assert_array_equal(*(x.reshape(5, -1, 32)[~none] for x in (numbers, want[0])))


def identity(scheme, n):
    """The arrays of a packed identity, whose scales are 1."""
    numbers = np.zeros((n, scheme.numbers(n)), "uint8" if scheme.bits == 4 else "int8")
    numbers[np.arange(n), np.arange(n)] = 1
    arrays = {"packed": in_halves(numbers + np.uint8(8)) if scheme.bits == 4 else numbers}
    shapes = scheme.tensors(n, n)
    arrays["scales"] = np.ones(shapes["scales"][0], "float16")
    return (
        {**arrays, "least": np.full(shapes["least"][0], -8, "float16")} if scheme.least and scheme.bits == 4 else arrays
    )


@pytest.mark.parametrize("rows", [*(pytest.param(x, marks=of_torch) for x in (1, 3, 8, 64)), 17])
@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, group=64), Scheme(4, least=False)], ids=str)
def test_times_the_identity_rows_are_rounded(scheme, rows, gpu, rng):
    """Bit for bit, with ties, zeros and tiny numbers, in the kernels for few rows and for many."""
    x = hard_rows(rng, rows, 290)
    y = matmul(ops.convert_to_tensor(x), as_tensors(identity(scheme, 290)), scheme, "native")
    np.testing.assert_array_equal(ops.convert_to_numpy(y), rounded_rows(x))
    assert [key.name for key in gpu.keys if key.name != "round_rows"] == [product_for(scheme, rows, "cuda")]


@of_torch
@pytest.mark.parametrize("rows", [3, 17])
@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4)], ids=str)
def test_what_is_no_number_stays_in_its_row(scheme, rows, gpu, rng):
    x, tensors = normal(rng, rows, 70), as_tensors(pack(normal(rng, 40, 70), scheme))
    want = ops.convert_to_numpy(matmul(ops.convert_to_tensor(x), tensors, scheme, "native"))
    x[0, 65], x[2, 0], want[[0, 2]] = np.inf, np.nan, np.nan
    np.testing.assert_array_equal(
        ops.convert_to_numpy(matmul(ops.convert_to_tensor(x), tensors, scheme, "native")), want
    )


# Outputs, inputs. The last is staged in two parts, where there are 8 rows.
SHAPES = [(1, 1), (5, 33), (70, 200), (17, 2112)]


@pytest.mark.parametrize("shape", [*(pytest.param(x, marks=of_torch) for x in SHAPES[:2]), *SHAPES[2:]], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products(scheme, shape, gpu, rng):
    """Of rounded rows and the unpacked matrix. 5e-7 of the sum of sizes: float32 sums in another order."""
    arrays = pack(normal(rng, *shape), scheme)
    matrix = unpacked(arrays, scheme, shape[1]).astype("float64")
    tensors, largest = as_tensors(arrays), shape == SHAPES[-1]
    for rows, dtype in (
        [(8, "float32")] if largest else [(1, HALF), (3, "float32"), (8, HALF), (17, HALF), (64, "float32")]
    ):
        given = normal(rng, rows, shape[1]).astype(dtype)
        x = ops.cast(ops.convert_to_tensor(given.astype("float32")), str(given.dtype))
        exact = given if scheme.bits == 16 else rounded_rows(given)
        gpu.keys.clear()
        got = ops.convert_to_numpy(compiled(lambda x: matmul(x, tensors, scheme, "native"))(x))
        assert got.dtype == "float32" and got.shape == (rows, shape[0])
        exact = exact.astype("float64")
        assert np.max(np.abs(got - exact @ matrix.T) / (np.abs(exact) @ np.abs(matrix.T))) < 5e-7


def test_the_slope_of_rows(gpu, rng):
    """Is that without a native kernel: the rounding of x passes by."""
    scheme, dy = Scheme(4), normal(rng, 3, 70)
    tensors, x = as_tensors(pack(normal(rng, 70, 33), scheme)), ops.convert_to_tensor(normal(rng, 3, 33))

    def loss(kernel):
        return gradients(lambda x: ops.sum(matmul(x, tensors, scheme, kernel) * ops.convert_to_tensor(dy)))

    got, want = (ops.convert_to_numpy(loss(kernel)(x)[0]) for kernel in ("native", "ops"))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, dy @ ops.convert_to_numpy(unpack(tensors, scheme, 33)), rtol=1e-5, atol=1e-5)


@of_torch
def test_which_kernel_is_asked_for(gpu, rng, monkeypatch):
    """By rows and by what the card can; more rows, and all where OPS_KERNEL is not set, are products of the backend."""
    scheme = Scheme(8)
    tensors = as_tensors(pack(normal(rng, 20, 64), scheme))

    def asked(rows, kernel="auto"):
        cuda._call("rwkv_cuda_open", cuda.DRIVER.encode(), cuda._missing)  # nothing is known
        gpu.keys.clear()
        matmul(ops.convert_to_tensor(normal(rng, rows, 64)), tensors, scheme, kernel)
        return [(key.name, key.N) for key in gpu.keys]

    monkeypatch.setenv("OPS_KERNEL", "0")
    assert [asked(rows) for rows in (1, 2, 3, 8)] == [[("product_int8", rows)] for rows in (1, 2, 4, 8)]
    for rows, size in ((9, 16), (17, 32), (33, 64), (64, 64)):
        assert asked(rows) == [("round_rows", 0), ("product_many_int8", size)]
    assert asked(65) == asked(8, "ops") == []
    monkeypatch.delenv("OPS_KERNEL")
    assert asked(8) == [] and asked(8, "native") == [("product_int8", 8)]


@pytest.mark.cpu
@of_torch
def test_a_card_without_such_tensor_cores_takes_few_rows(gpu, rng):
    gpu.major(7)
    cuda._found.pop("device")
    assert [product_for(Scheme(4), rows, "cuda") for rows in (0, 1, 8, 9)] == [
        None,
        "product_int4",
        "product_int4",
        None,
    ]
    tensors = as_tensors(pack(normal(rng, 5, 64), Scheme(4)))
    matmul(ops.convert_to_tensor(normal(rng, 8, 64)), tensors, Scheme(4), "native")
    assert [(key.name, key.architecture) for key in gpu.keys] == [("product_int4", 70)]
    assert not [finding for finding in check.check_products() if "many" in finding.kernel]


@pytest.mark.parametrize("name", ["product_int8", pytest.param("product_many_int8", marks=of_torch)])
def test_more_rows_than_a_kernel_takes(name, gpu, rng):
    """Which `jax.vmap` may make of few: they go one part after another."""
    scheme, rows = Scheme(8), 150 if "many" in name else 21
    tensors, x = as_tensors(pack(normal(rng, 20, 64), scheme)), normal(rng, rows, 64)
    got = product(name, ops.convert_to_tensor(x), tensors_of(tensors, scheme), Slope(scheme, 64))
    step = 64 if "many" in name else 8
    parts = [matmul(ops.convert_to_tensor(x[i : i + step]), tensors, scheme, "native") for i in range(0, rows, step)]
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (got, ops.concatenate(parts))), rtol=1e-5, atol=1e-5)


@of_torch
def test_what_does_not_fit_is_refused(gpu):
    """Other dtypes, rows that are rounded for another matrix, memory of which a card does not read 16 bytes at once."""
    x, packed, scales, y = (0, 0, (2, 64)), (0, 3, (5, 64)), (0, 4, (5, 2)), (0, 0, (2, 5))
    for name, given, reason in [
        ("product_int8", [(0, 4, (2, 64)), packed, scales], "takes numbers of float32 or bfloat16"),
        ("product_int8", [x, (0, 2, (5, 64)), scales], "argument 1 has another dtype"),
        ("product_int8", [x, packed, (0, 0, (5, 2))], "argument 2 has another dtype"),
        ("product_int8", [x, (8, 3, (5, 64)), scales], "begins at a multiple of 16 bytes"),
        ("product_int8", [x, (0, 3, (5, 60)), scales], "whole units"),
        ("product_int8", [(0, 0, (2, 65)), packed, scales], "whole units"),
        ("product_int8", [x, packed, (0, 4, (5, 3))], "groups of as many"),
        ("product_many_int8", [(0, 2, (2, 120)), packed, scales], "rounded for as many numbers"),
    ]:
        with pytest.raises(ValueError, match=f"{name} .*{reason}"):
            cuda.run(name, given, [y], None)


def direct(gpu, name, scheme, rows, rng):
    """y (rows, 37) of a kernel whose result lies amid NaN."""
    arrays = pack(normal(rng, 37, 300), scheme)
    given = [normal(rng, rows, 300), *arrays.values()]
    if "many" in name and scheme.bits < 16:
        numbers = scheme.numbers(300)
        made = np.zeros((rows, numbers // 32 * 40), "uint8")
        gpu.run("round_rows", guards.described(given[:1]), guards.described([made]))
        given[0] = made
    whole, y = guards.guarded((rows, 37))
    gpu.run(name, guards.described(given), guards.described([y]))
    return guards.read(whole, y)


@of_torch
@pytest.mark.parametrize(("kind", "rows"), [("product", 3), ("product", 8), ("product_many", 21)])
@pytest.mark.parametrize("scheme", [Scheme(16), Scheme(8), Scheme(4)], ids=str)
def test_results_are_whole_and_the_same_in_every_order(scheme, kind, rows, gpu):
    """Nothing beside them is written, and nothing is read before others have written it."""
    found = []
    for seed in SEEDS:
        gpu.seed(seed)
        found.append(direct(gpu, f"{kind}_{scheme.name}", scheme, rows, np.random.default_rng(0)))
        assert np.isfinite(found[-1]).all()
        np.testing.assert_array_equal(found[-1], found[0])


def is_found(card, monkeypatch, sources):
    """Whether `check_products`, in some order of threads, sees that a kernel is wrong."""
    card.install(monkeypatch, sources)
    monkeypatch.setattr(check, "INPUTS", 2112)  # which 8 rows are staged in two parts of
    monkeypatch.setattr(check, "OUTPUTS", 18)
    monkeypatch.setattr(check, "SCHEMES", (Scheme(16), Scheme(8, group=64), Scheme(4)))
    monkeypatch.setattr(check, "ROWS", {"product": (8,), "product_many": (17,)})
    for seed in SEEDS:
        card.seed(seed)
        if not all(finding.right for finding in check.check_products()):
            return True
    return False


@pytest.mark.cpu
@of_torch
def test_each_runs_in_the_memory_of_a_card(gpu):
    """As compute-sanitizer sees it, with nothing beside a tensor."""
    every_kernel.run_products(SimpleNamespace(run=partial(Card.run, gpu)))


FAULTS = {
    "the second part of a row": ("product.cu", "j0 / FACTOR_UNIT + piece / PER_UNIT", "piece / PER_UNIT"),
    "the wrong plane": ("product.cu", "to.x[row][lane / 4][unit]", "to.x[row][1 - lane / 4][unit]"),
    "the sum of another row": ("product.cu", "staged.sums[row][unit]", "staged.sums[0][unit]"),
    "a row too many": ("product_many.cu", "smaller(8 * n + 2 * q + c, R - 1)", "smaller(8 * n + q + c, R - 1)"),
    "words turned": ("product_many.cu", "by[0] = ((const unsigned*)row)[q]", "by[0] = ((const unsigned*)row)[q ^ 1]"),
    "the third part of x": ("product_many.cu", "sizeof(INPUT) == 2 ? 1 : 3", "sizeof(INPUT) == 2 ? 1 : 1"),
    "a group too far": ("rounding.h", "unit / each", "(unit + 1) / each"),
    "not to the nearest": ("rounding.h", "__float2int_rn(x[i] * inverse)", "(int)(x[i] * inverse)"),
    "half of a unit": ("rounding.h", "step = 1; step < ROUND_LANES; step *= 2) {", "step = 1; step < 4; step *= 2) {"),
}  # fmt: skip


@of_torch
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, card, tmp_path, monkeypatch):
    assert is_found(card, monkeypatch, quick.changed_sources(tmp_path / "src", *FAULTS[fault]))


@pytest.mark.cpu
@of_torch
@pytest.mark.parametrize(
    "text", ["if (j0) __syncthreads();", "numbers);\n    __syncthreads();", "4];\n  __syncthreads();"]
)
def test_a_barrier_that_is_missing_is_found(text, card, tmp_path, monkeypatch):
    file = "product_many.cu" if "4]" in text else "product.cu"
    without = text.replace("__syncthreads();", "").replace("if (j0) ", "")
    assert is_found(card, monkeypatch, quick.changed_sources(tmp_path / "src", file, text, without))


@pytest.mark.cpu
@pytest.mark.slow
@of_torch
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("name", [name for name in cuda.SOURCES if name.startswith("product") or name == "round_rows"])
def test_sanitizers_see_nothing(sanitizer, name, tmp_path):
    """Each thread of a block is one of the system. 3 rows of 60 numbers, 17 outputs of 64."""
    rows, inputs, outputs, numbers = sizes = 3, 60, 17, 64
    taken = 0 if name == "round_rows" else 16 if "many" in name else 4
    bits = cuda.PACKED.get(name.rpartition("_")[2], 8)
    x = f"u{rows * numbers // 32 * 40}" if "many" in name and bits < 16 else f"f{rows * inputs}"
    factors = [f"b{outputs * numbers // 32}"] * {16: 0, 8: 1, 4: 2}[bits]
    given = [x, f"u{outputs * numbers * bits // 8}", *factors, f"o{rows * outputs}"]
    given = given if taken else [x, f"o{rows * numbers // 32 * 10}"]
    blocks = -(-outputs // 16) if taken else rows
    program, options = tmp_path / "program", cuda.Key(name, "forward", taken, ("float", "float"), 90).options()
    more = "-O1", "-g", "-DEMU_THREADS", f"-fsanitize={sanitizer}", "-pthread", HERE / "emulated_main.cc"
    emulated(cuda.SOURCES[name], "forward", options, program, *more)
    told = [*given, *(f"i{x}" for x in (*sizes, numbers // 32))]
    command = [shutil.which("setarch"), "-R", program, "0", str(blocks), "256", *told]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
