"""RWKV-4 "Dove": a vector-valued state, normalised by what it has read (arXiv 2305.13048, section 3)."""

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer, cast_like, recurrent, scaled, shifted, squared_relu
from bert4keras_rwkv.layers.initial import constant, orthogonal
from bert4keras_rwkv.layers.projection import dense
from bert4keras_rwkv.ops.kernels.choose import check_kernel
from bert4keras_rwkv.ops.wkv4 import wkv4


def mixed(x, previous, mix):
    """The share `mix` (D,) of each token x (B, T, D), the rest of its predecessor. RWKV-6 swaps the two."""
    return previous + (x - previous) * cast_like(mix, x)


class TimeMix(Layer):
    """A mean of the values read, weighted by e^key and how long ago; no heads."""

    def __init__(self, config, index, initial, kernel="auto", **kwargs):
        super().__init__(**kwargs)
        D, policy = config.hidden_size, self.dtype_policy
        self.kernel, self.initial = check_kernel(kernel, self.compute_dtype), initial
        self.receptance, self.key, self.value, self.output_projection = (
            dense(D, name, initial[name], policy) for name in ("receptance", "key", "value", "output")
        )

    def build(self, shape):
        for name in ("decay", "bonus", "mix_k", "mix_v", "mix_r"):
            setattr(self, name, self.add(name, (shape[-1],), self.initial[name]))
        for layer in (self.receptance, self.key, self.value, self.output_projection):
            layer.build(shape)

    def call(self, x, state, side):
        previous, last = shifted(x, state, side)
        r = self.receptance(mixed(x, previous, self.mix_r))
        k = self.key(mixed(x, previous, self.mix_k))
        v = self.value(mixed(x, previous, self.mix_v))
        w = -ops.exp(ops.cast(self.decay, state["wkv"].dtype))
        y, wkv = wkv4(k, v, w, self.bonus, *recurrent(state, side), kernel=self.kernel)
        y = ops.sigmoid(r) * ops.cast(y, x.dtype)
        return self.output_projection(scaled(y, self.scale)), {"x": last, "wkv": wkv}, side


class ChannelMix(Layer):
    """value(relu(key)^2), gated by the receptance. RWKV-5's too."""

    def __init__(self, config, index, initial, **kwargs):
        super().__init__(**kwargs)
        c, policy = config, self.dtype_policy
        self.initial = initial
        self.key = dense(c.intermediate_size, "key", initial["key"], policy)
        self.value = dense(c.hidden_size, "value", initial["value"], policy)
        self.receptance = dense(c.hidden_size, "receptance", initial["receptance"], policy)

    def build(self, shape):
        self.mix_k = self.add("mix_k", (shape[-1],), self.initial["mix_k"])
        self.mix_r = self.add("mix_r", (shape[-1],), self.initial["mix_r"])
        self.key.build(shape)
        self.receptance.build(shape)
        self.value.build((*shape[:-1], self.key.units))

    def call(self, x, state, side):
        previous, last = shifted(x, state, side)
        k = self.key(self._mixed(x, previous, self.mix_k))
        r = self.receptance(self._mixed(x, previous, self.mix_r))
        return ops.sigmoid(r) * self.value(squared_relu(k, self.scale)), {"x": last}, side

    def _mixed(self, x, previous, mix):
        return mixed(x, previous, mix)


def depth(config, index):
    """How deep block `index` lies: 0 in the first and 1 in the last; 1 in the first and nearly 0 in the last."""
    return index / max(config.num_hidden_layers - 1, 1), 1 - index / config.num_hidden_layers


def mix_values(config, index):
    """The initial shares of the present token, name -> initializer: small for the first channels, 1 for the last."""
    later, fade = depth(config, index)
    channel = np.arange(config.hidden_size) / config.hidden_size
    return {
        "mix_k": constant(channel**fade),
        "mix_v": constant(channel**fade + 0.3 * later),
        "mix_r": constant(channel ** (0.5 * fade)),
    }


def channel_mix_values(config, index):
    """The initializers of a channel mix, RWKV-5.0's and 5.1's too."""
    keep = mix_values(config, index)["mix_k"]
    return {"mix_k": keep, "mix_r": keep, "key": orthogonal(), "value": "zeros", "receptance": "zeros"}


def initial_values(config, index):
    """Initializers of one block as its authors start training (RWKV-LM, RWKV-v4neo/src/model.py).

    The embedding is that of later versions, uniform within 1e-4; there its bound is the learning rate.
    Returns {'time_mix' | 'channel_mix': name -> initializer}.
    """
    later, _ = depth(config, index)
    n = np.arange(config.hidden_size)
    along = n / max(config.hidden_size - 1, 1)
    return {
        "time_mix": {
            **mix_values(config, index),
            "decay": constant(-5 + 8 * along ** (0.7 + 1.3 * later)),
            "bonus": constant(np.log(0.3) + 0.5 * ((n + 1) % 3 - 1)),
            "receptance": "zeros",
            "key": "zeros",
            "value": orthogonal(),
            "output": "zeros",
        },
        "channel_mix": channel_mix_values(config, index),
    }
