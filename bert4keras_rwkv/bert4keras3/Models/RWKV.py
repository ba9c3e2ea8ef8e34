"""RWKV6, and what a star import of `bert4keras3.Models.RWKV` brought to a program besides: all layers, and tools."""

import json

from bert4keras_rwkv.bert4keras3 import layers
from bert4keras_rwkv.bert4keras3.backend import backlib, int_shape
from bert4keras_rwkv.bert4keras3.snippets import is_string
from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.models.rwkv import RWKV as RWKV6

Model = keras.Model

__all__ = ["RWKV6", "Model", "backlib", "int_shape", "is_string", "json"]
__all__ += layers.__all__


def __getattr__(name):
    """What stands in `layers`."""
    return getattr(layers, name)
