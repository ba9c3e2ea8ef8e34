"""Keras layers: the residual block, one version a file its two mixers, and losses."""

from bert4keras_rwkv.layers.losses import Loss, NextTokenLoss

__all__ = ["Loss", "NextTokenLoss"]
