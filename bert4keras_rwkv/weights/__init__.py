"""Weights: any file as a lazy mapping of official names, tables that fit them to a model, and writers. Loads no
backend.
"""

from bert4keras_rwkv.versions.table import Rule
from bert4keras_rwkv.weights.checkpoint import open_weights
from bert4keras_rwkv.weights.formats.keras_h5 import write_keras_h5
from bert4keras_rwkv.weights.formats.pth_writer import write_pth
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors
from bert4keras_rwkv.weights.loading import assign, export
from bert4keras_rwkv.weights.tensors import WeightsError

__all__ = [
    "Rule",
    "WeightsError",
    "assign",
    "export",
    "open_weights",
    "write_keras_h5",
    "write_pth",
    "write_safetensors",
]
