"""RWKV language models as Keras 3 layers for JAX, TensorFlow and PyTorch.

Importing this loads no backend. Choose one with KERAS_BACKEND, or in ~/.keras/keras.json, before using a name below.
"""

import importlib

__version__ = "0.1.0"

PUBLIC = {
    "RWKV": "models",
    "RWKVConfig": "config",
    "RWKVState": "state",
    "RWKV_TOKENIZER": "tokenizers",
    "Sampling": "generation.sampling",
    "Session": "session",
    "build_transformer_model": "models",
    "open_weights": "weights",
}
__all__ = [*PUBLIC, "__version__"]


def __getattr__(name):
    if name not in PUBLIC:
        raise AttributeError(f"bert4keras_rwkv has no '{name}'. It has: {', '.join(PUBLIC)}.")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *PUBLIC])
