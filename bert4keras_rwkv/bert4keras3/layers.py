"""All layers of Keras, `Loss`, and what else `from bert4keras3.layers import *` brought to a program."""

import numpy as np

from bert4keras_rwkv.bert4keras3.backend import K, Layer
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.losses import Loss

activations, initializers, random = keras.activations, keras.initializers, keras.random

__all__ = ["K", "Layer", "Loss", "activations", "initializers", "keras", "np", "ops", "random"]
__all__ += [name for name in dir(keras.layers) if not name.startswith("_")]


def __getattr__(name):
    """A layer of Keras."""
    return getattr(keras.layers, name)
