"""Models: `build_transformer_model` and the `RWKV` it returns."""

from bert4keras_rwkv.models.build import build_transformer_model
from bert4keras_rwkv.models.rwkv import RWKV

__all__ = ["RWKV", "build_transformer_model"]
