"""Initial values, computed by NumPy: the same on every backend for one `keras.utils.set_random_seed`."""

import random

import numpy as np

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.ops.backend import adopt
from bert4keras_rwkv.weights.copying import aligned, laid_out
from bert4keras_rwkv.weights.tensors import dtype_named


class Initial(keras.initializers.Initializer):
    """An initializer from a function `(shape, numpy Generator) -> array`."""

    def __init__(self, function):
        self.function = function

    def __call__(self, shape, dtype=None):
        generator = np.random.default_rng(random.getrandbits(63))
        return keras.ops.convert_to_tensor(self.function(shape, generator).astype("float32"), dtype)


def blank(shape, dtype="float32"):
    """Zeros for a weight that is about to be read from a file: large ones take no memory until something is written."""
    return adopt(aligned(shape, dtype_named(dtype), np.zeros))


def ones(shape, dtype="float32"):
    """Ones, as NumPy makes them: for Keras' own JAX compiles a program, which takes time and memory at the start."""
    return adopt(laid_out(np.ones(shape, "float32"), dtype_named(dtype)))


def constant(array):
    """These values."""
    return Initial(lambda shape, _: np.broadcast_to(np.asarray(array), shape))


def uniform(bound):
    """Uniform in [-bound, bound]."""
    return Initial(lambda shape, generator: generator.uniform(-bound, bound, shape))


def orthonormal(gain=1.0):
    """A kernel (inputs, outputs) with orthonormal rows or columns, times gain."""

    def values(shape, generator):
        inputs, outputs = shape
        tall = generator.standard_normal((max(shape), min(shape)), "float32")
        q, r = np.linalg.qr(tall)
        q = q * np.sign(np.diag(r))
        return np.ascontiguousarray(gain * (q if inputs >= outputs else q.T))

    return Initial(values)


def orthogonal(gain=1.0):
    """`orthonormal`, times sqrt(outputs / inputs) for a kernel that widens: RWKV-LM's rule for heads, and up to its
    first RWKV-5 for every projection.
    """

    def values(shape, generator):
        inputs, outputs = shape
        return max(outputs / inputs, 1) ** 0.5 * orthonormal(gain).function(shape, generator)

    return Initial(values)
