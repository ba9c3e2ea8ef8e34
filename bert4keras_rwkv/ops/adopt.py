"""From NumPy to the backend without a copy, where that is possible."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras

from . import backend


def adopt(array):
    """A NumPy array of floating numbers, which nobody will write to any more, as a tensor of its own dtype.

    On a CPU the tensor is the array's memory, if that begins at a multiple of 64 bytes. Keras would copy it, and keep
    two of them until the array is forgotten.
    """
    if backend.name() == "jax":
        import jax

        return jax.device_put(array)
    if backend.name() == "tensorflow":
        import tensorflow as tf

        return tf.bitcast(tf.experimental.dlpack.from_dlpack(_bits(array).__dlpack__()), str(array.dtype))
    if backend.name() == "torch":
        import torch

        return keras.ops.convert_to_tensor(torch.from_numpy(_bits(array)).view(getattr(torch, str(array.dtype))))
    return array


def _bits(array):
    """The array as integers, for exchanges that do not know bfloat16."""
    return array.view(np.dtype(f"int{8 * array.dtype.itemsize}"))
