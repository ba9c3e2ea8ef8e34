"""The state in which a text begins, as weights: state tuning."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.base import Layer
from bert4keras_rwkv.ops.backend import accumulation_dtype


class StartState(Layer):
    """The initial state of one layer, zero until it is trained; float32 (float64 in a float64 model).

    wkv_shape: (H, N, N), or (3, D) of RWKV-4: there the weights are numerator and denominator, the latter never
    negative, and the maximum is 0, for far below it their gradient would vanish. width: D. shift: whether the two last
    inputs are weights too.
    """

    def __init__(self, wkv_shape, width, shift, **kwargs):
        super().__init__(**kwargs)
        self.wkv_shape, self.width, self.shift = tuple(wkv_shape), width, shift
        self.quotient = len(self.wkv_shape) == 2

    def build(self, *_):
        if self.quotient:
            self.numerator = self._weight("numerator", (1, 1, self.width))
            self.denominator = self._weight("denominator", (1, 1, self.width), keras.constraints.NonNeg())
        else:
            self.wkv = self._weight("wkv", (1, *self.wkv_shape))
        if self.shift:
            self.time_x, self.channel_x = (self._weight(name, (1, 1, self.width)) for name in ("time_x", "channel_x"))
        self.built = True

    def load_own_variables(self, store):
        if store.keys():  # weights without a tuned state leave it as it is
            super().load_own_variables(store)

    def values(self, dtype):
        """The nested state of one row, with a batch axis of 1. dtype: of the last inputs."""
        time = {"x": self._last("time_x", dtype)}
        if self.quotient:
            numerator, denominator = ops.convert_to_tensor(self.numerator), ops.convert_to_tensor(self.denominator)
            time["wkv"] = ops.concatenate([numerator, denominator, ops.zeros_like(numerator)], axis=1)
        else:
            time["wkv"] = ops.convert_to_tensor(self.wkv)
        return {"time": time, "channel": {"x": self._last("channel_x", dtype)}}

    def assign(self, wkv, shift):
        """Take over a state, NumPy arrays: wkv (*wkv_shape), shift (2, 1, D), kept only by a layer with `shift`."""
        if self.quotient:
            numerator, denominator = wkv[:2] * np.exp(wkv[2])  # they are kept times e^-maximum, and here that is 0
            self.numerator.assign(numerator[None, None])
            self.denominator.assign(denominator[None, None])
        else:
            self.wkv.assign(wkv[None])
        if self.shift:
            self.time_x.assign(shift[None, 0])
            self.channel_x.assign(shift[None, 1])

    def _weight(self, name, shape, constraint=None):
        dtype = accumulation_dtype(self.compute_dtype)
        return self.add_weight(
            shape=shape, name=name, initializer="zeros", constraint=constraint, dtype=dtype, autocast=False
        )

    def _last(self, name, dtype):
        return ops.cast(getattr(self, name)[:, 0], dtype) if self.shift else ops.zeros((1, self.width), dtype)
