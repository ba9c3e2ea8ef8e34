"""Gradients of a function of tensors, on whichever backend runs."""

import functools

import keras
from keras import ops

from bert4keras_rwkv.ops import gradients as differentiated

BACKEND = keras.backend.backend()


def gradients(function, arrays, jit=False):
    """d function(*arrays) / d array for each array, as NumPy; function returns a scalar. jit: as in `ops.gradients`."""
    return [ops.convert_to_numpy(g) for g in differentiated.gradients(function, jit)(*arrays)]


def compile_on(function, jit=True):
    """`function` as one compiled program, where the backend compiles."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=jit, autograph=False)
    return function


@functools.cache
def quick(function):
    """`function` of tensors and Nones, compiled on JAX, where its operations one by one would be compiled each."""
    return compile_on(function) if BACKEND == "jax" else function
