"""RWKV-7 "Goose": a state that unlearns a key before it learns it anew, at a rate that depends on the data
(arXiv 2503.14456, section 4).
"""

import math

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer, cast_like, recurrent, scaled, shifted, squared_relu
from bert4keras_rwkv.layers.head_norm import HeadNorm
from bert4keras_rwkv.layers.initial import constant, orthonormal
from bert4keras_rwkv.layers.low_rank import LowRank
from bert4keras_rwkv.layers.projection import dense
from bert4keras_rwkv.ops.backend import materialise
from bert4keras_rwkv.ops.kernels.choose import check_kernel
from bert4keras_rwkv.ops.wkv7 import wkv7
from bert4keras_rwkv.versions.rwkv7 import MIXED

FASTEST = -math.exp(-0.5)  # the log of the fastest decay
SHORTEST = 1e-12  # a shorter key is not made longer than this part of it


class TimeMix(Layer):
    """Linear attention with a matrix-valued state, a decay, and an in-context learning rate for every channel and
    token. Blocks after the first mix the first block's value, `side["v_first"]`, into theirs.
    """

    def __init__(self, config, index, initial, kernel="auto", **kwargs):
        super().__init__(**kwargs)
        c, policy = config, self.dtype_policy
        self.heads, self.head_size, self.first = c.num_attention_heads, c.attention_head_size, index == 0
        self.kernel, self.initial = check_kernel(kernel, self.compute_dtype), initial
        attention = self.heads * self.head_size

        def low_rank(name, rank, activation=None):
            start = {part: initial[f"{name}/{part}"] for part in ("a", "b")}
            return LowRank(attention, rank, start, activation=activation, name=name, dtype=policy)

        self.decay_low_rank = low_rank("decay_low_rank", c.decay_low_rank_dim, "tanh")
        self.rate_low_rank = low_rank("rate_low_rank", c.a_low_rank_dim)
        self.value_low_rank = None if self.first else low_rank("value_low_rank", c.v_low_rank_dim)
        self.gate_low_rank = low_rank("gate_low_rank", c.gate_low_rank_dim, "sigmoid")
        self.receptance, self.key, self.value = (
            dense(attention, name, initial[name], policy) for name in ("receptance", "key", "value")
        )
        self.output_projection = dense(c.hidden_size, "output", initial["output"], policy)
        self.norm = HeadNorm(
            c.group_norm_epsilon, initial["norm/gamma"], initial["norm/beta"], name="norm", dtype=policy
        )

    def build(self, shape):
        attention = self.heads * self.head_size
        self.mix = self.add("mix", (len(MIXED), shape[-1]), self.initial["mix"])
        self.bonus = self.add("bonus", (self.heads, self.head_size), self.initial["bonus"])
        for name in ("decay", "rate", *([] if self.first else ["value_mix"]), "key_scale", "key_rate"):
            setattr(self, name, self.add(name, (attention,), self.initial[name]))
        layers = [self.decay_low_rank, self.rate_low_rank, self.gate_low_rank, self.receptance, self.key, self.value]
        for layer in layers + ([] if self.first else [self.value_low_rank]):
            layer.build(shape)
        self.output_projection.build((*shape[:-1], attention))
        self.norm.build((*shape[:-1], self.heads, self.head_size))

    def call(self, x, state, side):
        exact, heads = state["wkv"].dtype, self._heads
        previous, last = shifted(x, state, side)
        change, mix = materialise(previous - x), cast_like(self.mix, x)  # as in RWKV-6
        xr, xw, xk, xv, xa, xg = (x + change * mix[i] for i in range(len(MIXED)))
        v, side = self._value(xv, side, exact)
        r, k, v = (ops.cast(heads(y), exact) for y in (self.receptance(xr), self.key(xk), v))
        w = FASTEST * heads(_gate(self.decay, self.decay_low_rank(xw), exact))
        rate = heads(_gate(self.rate, self.rate_low_rank(xa), exact))
        kk = unit_length(k * heads(ops.cast(self.key_scale, exact)[None, None]))
        k = k * (1 + (rate - 1) * heads(ops.cast(self.key_rate, exact)[None, None]))
        y, wkv = wkv7(r, w, k, v, -kk, kk * rate, *recurrent(state, side), self.kernel, bounded=True)
        own = ops.sum(r * k * ops.cast(self.bonus, exact), axis=-1, keepdims=True) * v
        y = self.norm(y) + ops.reshape(own, (*ops.shape(x)[:2], -1))
        y = ops.cast(y * ops.cast(self.gate_low_rank(xg), exact), x.dtype)
        return self.output_projection(scaled(y, self.scale)), {"x": last, "wkv": wkv}, side

    def _value(self, xv, side, exact):
        """The value (B, T, H * N) with the first block's mixed in, or the first block's, which it hands on."""
        v = self.value(xv)
        if self.first:
            return v, {**side, "v_first": v}
        v, first = ops.cast(v, exact), ops.cast(side["v_first"], exact)
        return v + (first - v) * _gate(self.value_mix, self.value_low_rank(xv), exact), side

    def _heads(self, x):
        return ops.reshape(x, (*ops.shape(x)[:2], self.heads, self.head_size))


def _gate(base, change, dtype):
    """sigmoid(base + change), computed in `dtype`."""
    return ops.sigmoid(ops.cast(base, dtype) + ops.cast(change, dtype))


def unit_length(x):
    """x / max(|x|, SHORTEST) over the last axis. Its gradient at 0 is finite."""
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), SHORTEST**2))


class ChannelMix(Layer):
    """value(relu(key)^2)."""

    def __init__(self, config, index, initial, **kwargs):
        super().__init__(**kwargs)
        self.initial = initial
        self.key = dense(config.intermediate_size, "key", initial["key"], self.dtype_policy)
        self.value = dense(config.hidden_size, "value", initial["value"], self.dtype_policy)

    def build(self, shape):
        self.mix_k = self.add("mix_k", (shape[-1],), self.initial["mix_k"])
        self.key.build(shape)
        self.value.build((*shape[:-1], self.key.units))

    def call(self, x, state, side):
        previous, last = shifted(x, state, side)
        k = self.key(x + (previous - x) * cast_like(self.mix_k, x))
        return self.value(squared_relu(k, self.scale)), {"x": last}, side


def initial_values(config, index):
    """Initializers of one block as its authors start training (RWKV-LM, RWKV-v7/train_temp/src/model.py, x070).

    Returns {'time_mix' | 'channel_mix': name -> initializer}.
    """
    c = config
    H, N, D = c.num_attention_heads, c.attention_head_size, c.hidden_size
    later = index / max(c.num_hidden_layers - 1, 1)  # 0 in the first layer, 1 in the last
    fade = 1 - index / c.num_hidden_layers  # 1 in the first layer, nearly 0 in the last
    channel = np.arange(D) / D
    along = np.arange(H * N) / max(H * N - 1, 1)  # 0 to 1 over all heads
    across = np.tile(np.linspace(-1, 1, N) if N > 1 else np.zeros(1), H)  # -1 to 1 over each head
    zigzag = across * np.abs(across)
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    ranks = {
        "decay": c.decay_low_rank_dim,
        "rate": c.a_low_rank_dim,
        "value": c.v_low_rank_dim,
        "gate": c.gate_low_rank_dim,
    }
    low_ranks = {f"{name}_low_rank/b": orthonormal(0.1 * max(rank / (H * N), 1) ** 0.5) for name, rank in ranks.items()}
    return {
        "time_mix": {
            "mix": constant(np.stack([1 - channel ** (powers[m] * fade) for m in MIXED])),
            "decay": constant(-5.5 + 6 * along ** (1 + later**0.3) + 2.5 * zigzag),
            "rate": constant(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5)),
            "value_mix": constant(0.73 - 0.4 * (along - 0.5)),
            "key_scale": constant(0.71 - 0.1 * (along - 0.5)),
            "key_rate": constant(1.02),
            "bonus": constant(-0.04),
            **{f"{name}_low_rank/a": "zeros" for name in ranks},
            **low_ranks,
            "receptance": orthonormal(),
            "key": orthonormal(0.1),
            "value": orthonormal(),
            "output": "zeros",
            "norm/gamma": constant(((1 + index) / c.num_hidden_layers) ** 0.7),
            "norm/beta": "zeros",
        },
        "channel_mix": {
            "mix_k": constant(1 - channel ** (fade**4)),
            "key": orthonormal(),
            "value": "zeros",
        },
    }
