"""RWKV language models as Keras 3 layers for JAX, TensorFlow and PyTorch.

Importing this loads no backend. Choose one with KERAS_BACKEND, or in ~/.keras/keras.json, before using a name below.
"""

from bert4keras_rwkv.public_names import public_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = public_names(
    __name__,
    {
        "Chat": ".chat.conversation",
        "RWKV": ".models",
        "RWKVConfig": ".config",
        "RWKVState": ".state",
        "RWKV_TOKENIZER": ".tokenizers",
        "Sampling": ".generation.sampling",
        "Session": ".session",
        "Strategy": ".strategy",
        "build_transformer_model": ".models",
        "open_weights": ".weights",
    },
)
