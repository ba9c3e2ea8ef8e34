"""The models by their module; there is one, `RWKV`."""

from bert4keras_rwkv.bert4keras3.Models import RWKV

__all__ = ["RWKV"]
