"""Packed matrices and products with them, against NumPy's own arithmetic."""

import numpy as np
import pytest

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.ops.gradients import gradients
from bert4keras_rwkv.ops.kernels.library import DTYPES, library
from bert4keras_rwkv.ops.matmul import FEW, Scheme, dense, matmul, pack, product_for, unpack
from bert4keras_rwkv.packing import unpacked

SCHEMES = [
    Scheme(16),
    Scheme(8),
    Scheme(8, group=64),
    Scheme(8, group=None),
    Scheme(4),
    Scheme(4, group=64),
    Scheme(4, group=128),
    Scheme(4, least=False),
    Scheme(4, group=None),
]
SHAPES = [(1, 1), (3, 32), (5, 33), (70, 96), (64, 200), (129, 1000)]


def matrix(outputs, inputs, seed=0):
    return np.random.default_rng(seed).standard_normal((outputs, inputs)).astype("float32")


def furthest(scheme):
    """How far from the nearest packed number another may be, as a share of the largest."""
    if scheme.bits == 16:
        return 2.0**-8
    if scheme.bits == 8:
        return 0.5 / 127
    return 2 * 0.5 / 15 if scheme.least else 1 / 8  # of -8 to 7 the last is far from 8


def rounded(x):
    """x (R, I), each 32 numbers rounded to int8 with a scale of their own, as floats."""
    R, inputs = x.shape
    units = np.zeros((R, -(-inputs // 32) * 32), "float32")
    units[:, :inputs] = x
    units = units.reshape(R, -1, 32)
    most = np.abs(units).max(-1, keepdims=True)
    whole = np.rint(units * np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0))
    return (whole * (most / np.float32(127))).reshape(R, -1)[:, :inputs]


def as_tensors(arrays):
    return {name: ops.convert_to_tensor(array) for name, array in arrays.items()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_packed_matrix_is_near(scheme, shape):
    wanted = matrix(*shape)
    arrays = pack(wanted, scheme)
    assert {name: (x.shape, x.dtype.name) for name, x in arrays.items()} == scheme.tensors(*shape)
    got = ops.convert_to_numpy(unpack(as_tensors(arrays), scheme, shape[1]))
    np.testing.assert_array_equal(got, unpacked(arrays, scheme, shape[1]).astype("float32"))
    apart, largest = np.abs(got - wanted), np.abs(wanted).max()
    if scheme.bits == 4:  # of least squares: no group is further off as a whole than with all of its numbers in reach
        apart = np.sqrt(np.mean(apart**2, axis=1))
    assert apart.max() <= largest * (furthest(scheme) + 2.0**-10)  # a scale is rounded, too
    again = ops.convert_to_numpy(unpack(as_tensors(pack(got, scheme)), scheme, shape[1]))
    if scheme.bits == 4:  # where the ends of a group are out of reach, its scale is found anew
        assert np.sqrt(np.mean((again - got) ** 2)) <= 0.02 * np.abs(got).max()
    else:
        np.testing.assert_allclose(again, got, atol=2e-3 * np.abs(got).max())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:5], ids=str)
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_products(scheme, shape, many, monkeypatch):
    """By the kernels of every instruction set, for few rows or for many, or by unpacking: the same function."""
    monkeypatch.setattr("bert4keras_rwkv.ops.matmul.multiplies_many", lambda bits: many)
    monkeypatch.setattr("bert4keras_rwkv.ops.matmul.SEVERAL", dict.fromkeys((16, 8, 4), 4))
    tensors = as_tensors(pack(matrix(*shape), scheme))
    unpacked = ops.convert_to_numpy(unpack(tensors, scheme, shape[1])).astype("float64")
    native = keras.backend.backend() in ("jax", "torch")
    for rows in (4, 5, 7, FEW + 3) if many else (1, 2, 5, FEW, FEW + 1):
        x = matrix(rows, shape[1], seed=1)
        for dtype in ("float32", "bfloat16") if rows == 5 else ("float32",):
            exact = np.array(ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32")))
            given = ops.cast(exact, dtype)
            wanted = (exact if scheme.bits == 16 else rounded(exact)) @ unpacked.T
            scale = np.abs(exact) @ np.abs(unpacked.T)
            for level in library().levels() if native and product_for(scheme, rows) else [None]:
                if level is not None:
                    library().choose(level)
                got = ops.convert_to_numpy(compiled(lambda x: matmul(x, tensors, scheme))(given))
                assert got.dtype == "float32"
                assert np.max(np.abs(got - wanted) / np.maximum(scale, 1e-30)) < 2e-6
    if native:
        library().choose(library().levels()[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (70, 96), (200, 64), (1000, 129), (300, 2100)], ids=str)
def test_dense_products(dtype, shape):
    """Of a few rows by the kernel of every instruction set, and of more: NumPy's product of the same numbers."""
    w = ops.cast(matrix(*shape), dtype)
    exact = np.float64(ops.convert_to_numpy(ops.cast(w, "float32")))
    native = keras.backend.backend() in ("jax", "torch")
    for rows in (1, 3, FEW + 1):
        x = ops.cast(matrix(rows, shape[0], seed=1), dtype)
        given = np.float64(ops.convert_to_numpy(ops.cast(x, "float32")))
        for level in library().levels() if native and rows <= FEW else [None]:
            if level is not None:
                library().choose(level)
            got = ops.convert_to_numpy(compiled(lambda x: dense(x, w))(x))
            assert got.dtype == "float32"
            near = 2e-6 if keras.backend.backend() == "jax" or (rows <= FEW and native) else 2.0**-8
            scale = np.abs(given) @ np.abs(exact)
            assert np.max(np.abs(got - given @ exact) / scale) < near
    if native:
        library().choose(library().levels()[0])


@pytest.mark.parametrize("shape", [(1000, 70), (600, 2100), (260, 33000)], ids=str)
def test_a_dense_product_is_the_same_whoever_computes_it(shape):
    """On any number of threads, and a row alone as among others: bit for bit."""
    x, w = matrix(5, shape[0], seed=1), matrix(*shape)

    def product(x, threads):
        y = np.full((len(x), shape[1]), np.nan, "float32")
        tensors = [(array.ctypes.data, DTYPES["float32"], array.shape) for array in (x, w, y)]
        library().run("product_dense", tensors[:2], tensors[2:], threads)
        return y

    whole = product(x, 1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(product(x, threads), whole)
    np.testing.assert_array_equal(np.concatenate([product(x[r : r + 1], 2) for r in range(len(x))]), whole)


def test_the_slopes_of_a_dense_product():
    x, w = matrix(3, 33), matrix(33, 70, seed=1)
    dy = matrix(3, 70, seed=2)

    def loss(x, w):
        return ops.sum(ops.multiply(dense(x, w), ops.convert_to_tensor(dy)))

    dx, dw = gradients(loss)(x, w)
    np.testing.assert_allclose(ops.convert_to_numpy(dx), dy @ w.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(dw), x.T @ dy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["auto", "ops"])
@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_tiny_numbers_and_no_rows(bits, kernel):
    """What is far too small to be rounded is zero, and nothing is nothing."""
    scheme = Scheme(bits)
    tensors = as_tensors(pack(matrix(40, 96), scheme))
    for rows in (1, FEW + 1):
        x = np.zeros((rows, 96), "float32")
        x[:, [3, 40]] = 1e-37, 1e-41
        assert not ops.convert_to_numpy(matmul(ops.convert_to_tensor(x), tensors, scheme, kernel)).any()
    for shape in ((0, 96), (2, 0, 96)):
        assert tuple(matmul(ops.zeros(shape), tensors, scheme, kernel).shape) == (*shape[:-1], 40)
