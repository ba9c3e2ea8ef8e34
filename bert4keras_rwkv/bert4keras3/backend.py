"""What programs take from `bert4keras3.backend`. Nothing of Keras is changed, and no environment variable read."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.backend import name

__all__ = ["K", "Layer", "backlib", "int_shape", "is_tf_keras", "keras", "np", "ops"]

K = keras.backend
backlib = name()
is_tf_keras = False  # Keras 3 is never the Keras in TensorFlow


class Layer(keras.layers.Layer):
    """A Keras layer that passes masks on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True


def int_shape(x):
    """The shape of a tensor as a tuple, None for what is not known."""
    return tuple(x.shape)
