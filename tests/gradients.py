"""Gradients of a function of tensors, on whichever backend runs."""

import functools

import keras
from keras import ops

BACKEND = keras.backend.backend()


def gradients(function, arrays, jit=False):
    """d function(*arrays) / d array for each array, as NumPy; function returns a scalar.

    jit: through XLA, as JAX always does.
    """
    if BACKEND == "jax":
        import jax

        gradient = jax.grad(function, tuple(range(len(arrays))))
        found = jax.jit(gradient)(*arrays)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit, autograph=False)
        def gradient(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(*tensors)
            return tape.gradient(value, tensors)

        found = gradient(*map(ops.convert_to_tensor, arrays))
    else:
        tensors = [ops.convert_to_tensor(x).detach().clone().requires_grad_() for x in arrays]
        function(*tensors).backward()
        found = [x.grad for x in tensors]
    return [ops.convert_to_numpy(g) for g in found]


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
