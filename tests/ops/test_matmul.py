"""Packed matrices and products with them, against NumPy's own arithmetic."""

import numpy as np
import pytest

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.ops.kernels.library import library
from bert4keras_rwkv.ops.matmul import FEW, Scheme, matmul, pack, unpack
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


def without_ties(x):
    """x, with 0 for what lies halfway between two whole numbers when it is rounded: either of them is right."""
    for i in range(0, x.shape[1], 32):
        unit = x[:, i : i + 32]
        scaled = np.abs(unit) * (127 / np.abs(unit).max(-1, keepdims=True))
        unit[np.abs(scaled % 1 - 0.5) < 1e-3] = 0
    return x


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
    largest = np.abs(wanted).max()
    assert np.abs(got - wanted).max() <= largest * (furthest(scheme) + 2.0**-10)  # a scale is rounded, too
    again = ops.convert_to_numpy(unpack(as_tensors(pack(got, scheme)), scheme, shape[1]))
    np.testing.assert_allclose(again, got, atol=2e-3 * np.abs(got).max())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:5], ids=str)
def test_products(scheme, shape):
    """Few rows by the kernel of every instruction set, many by unpacking, in both dtypes of x: the same function."""
    tensors = as_tensors(pack(matrix(*shape), scheme))
    unpacked = ops.convert_to_numpy(unpack(tensors, scheme, shape[1])).astype("float64")
    native = keras.backend.backend() in ("jax", "torch")
    for rows in (1, 2, 5, FEW, FEW + 1):
        x = matrix(rows, shape[1], seed=1)
        for dtype in ("float32", "bfloat16"):
            exact = without_ties(np.array(ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32"))))
            given = ops.cast(exact, dtype)
            wanted = (exact if scheme.bits == 16 else rounded(exact)) @ unpacked.T
            scale = np.abs(exact) @ np.abs(unpacked.T)
            for level in library().levels() if native and rows <= FEW else [None]:
                if level is not None:
                    library().choose(level)
                got = ops.convert_to_numpy(compiled(lambda x: matmul(x, tensors, scheme))(given))
                assert got.dtype == "float32"
                assert np.max(np.abs(got - wanted) / np.maximum(scale, 1e-30)) < 2e-6
    if native:
        library().choose(library().levels()[0])
