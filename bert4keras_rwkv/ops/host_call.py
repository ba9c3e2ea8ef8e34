"""A call from compiled code to the host, for its side effect."""

import numpy as np

from bert4keras_rwkv.keras_loader import ops

from . import backend


def host_call(function, *tensors):
    """Call `function(*arrays)` with the values of `tensors` as NumPy arrays, each time the surrounding code runs.

    Its answer is ignored. TensorFlow cannot do this inside code compiled by XLA.
    """
    if backend.name() == "jax":
        import jax

        jax.debug.callback(lambda *arrays: function(*map(np.asarray, arrays)), *tensors)
    elif backend.name() == "tensorflow":
        import tensorflow as tf

        tf.py_function(lambda *arrays: function(*[array.numpy() for array in arrays]), tensors, [])
    else:
        function(*map(ops.convert_to_numpy, tensors))
