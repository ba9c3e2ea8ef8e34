"""Weights: any file as a lazy mapping of official names, tables that fit them to a model, and writers. Loads no
backend.
"""

from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.files import open_weights
from bert4keras_rwkv.weights.rules import Rule, assign, export
from bert4keras_rwkv.weights.write import write_keras_h5, write_pth, write_safetensors

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
