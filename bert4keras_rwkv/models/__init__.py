"""Models: `build_transformer_model` and the `RWKV` it returns."""

# First, so that a backend that is missing is said in a short traceback.
from bert4keras_rwkv.keras_loader import keras  # noqa: F401
from bert4keras_rwkv.models.rwkv import RWKV, build_transformer_model

__all__ = ["RWKV", "build_transformer_model"]
