"""RWKV-5 "Eagle": matrix-valued heads whose decay is learned and constant (arXiv 2404.05892, sections 4 and 4.1).

Three variants were released. '5.0' has no gate; '5.0' and '5.1' have one decay a head, '5.2' one a channel.
"""

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer, recurrent, scaled, shifted
from bert4keras_rwkv.layers.head_norm import HeadNorm
from bert4keras_rwkv.layers.initial import constant, orthogonal, orthonormal
from bert4keras_rwkv.layers.projection import dense
from bert4keras_rwkv.layers.rwkv4 import ChannelMix, channel_mix_values, depth, mix_values, mixed
from bert4keras_rwkv.ops.kernels.choose import check_kernel
from bert4keras_rwkv.ops.wkv5 import wkv5

__all__ = ["ChannelMix", "TimeMix", "initial_values"]


class TimeMix(Layer):
    """Linear attention with a matrix-valued state and a constant decay for every head or channel.

    `bonus` is what files hold: `time_faaaa`, or with `exponential_bonus` the logarithm `time_first`.
    """

    def __init__(self, config, index, initial, kernel="auto", **kwargs):
        super().__init__(**kwargs)
        c, policy = config, self.dtype_policy
        self.heads, self.head_size = c.num_attention_heads, c.attention_head_size
        self.per_channel, self.gated = c.variant == "5.2", c.variant != "5.0"
        self.exponential_bonus = c.exponential_bonus
        self.kernel, self.initial = check_kernel(kernel, self.compute_dtype), initial
        attention = self.heads * self.head_size
        self.receptance, self.key, self.value = (
            dense(attention, name, initial[name], policy) for name in ("receptance", "key", "value")
        )
        self.gate = dense(attention, "gate", initial["gate"], policy) if self.gated else None
        self.output_projection = dense(c.hidden_size, "output", initial["output"], policy)
        self.norm = HeadNorm(
            c.group_norm_epsilon, initial["norm/gamma"], initial["norm/beta"], name="norm", dtype=policy
        )

    def build(self, shape):
        for name in ("mix_k", "mix_v", "mix_r", "mix_g") if self.gated else ("mix_k", "mix_v", "mix_r"):
            setattr(self, name, self.add(name, (shape[-1],), self.initial[name]))
        for name in ("decay", "bonus"):
            size = (self.heads, self.head_size) if self.per_channel else (self.heads,)
            setattr(self, name, self.add(name, size, self.initial[name]))
        for layer in (self.receptance, self.key, self.value, *([self.gate] if self.gated else [])):
            layer.build(shape)
        self.output_projection.build((*shape[:-1], self.heads * self.head_size))
        self.norm.build((*shape[:-1], self.heads, self.head_size))

    def call(self, x, state, side):
        previous, last = shifted(x, state, side)
        r = self._heads(self.receptance(mixed(x, previous, self.mix_r)))
        k = self._heads(self.key(mixed(x, previous, self.mix_k)))
        v = self._heads(self.value(mixed(x, previous, self.mix_v)))
        w = -ops.exp(ops.cast(self.decay, state["wkv"].dtype))
        u = ops.cast(self.bonus, state["wkv"].dtype)
        u = ops.exp(u) if self.exponential_bonus else u
        y, wkv = wkv5(r, w, k, v, u, *recurrent(state, side), kernel=self.kernel)
        y = ops.cast(self.norm(y), x.dtype)
        if self.gated:
            y = y * ops.silu(self.gate(mixed(x, previous, self.mix_g)))
        return self.output_projection(scaled(y, self.scale)), {"x": last, "wkv": wkv}, side

    def _heads(self, x):
        return ops.reshape(x, (*ops.shape(x)[:2], self.heads, self.head_size))


def initial_values(config, index):
    """Initializers of one block as its authors start training (RWKV-LM, RWKV-v5/src/model.py, r1 to r3 and x052).

    Returns {'time_mix' | 'channel_mix': name -> initializer}.
    """
    c, per_channel = config, config.variant == "5.2"
    later, _ = depth(config, index)
    shape = (c.num_attention_heads, c.attention_head_size) if per_channel else (c.num_attention_heads,)
    n = np.arange(np.prod(shape)).reshape(shape)
    along = n / max(n.size - 1, 1)
    bonus = later * (1 - along) + (0.1 * ((n + 1) % 3 - 1) if per_channel else 0)
    mixes, channel = mix_values(config, index), channel_mix_values(config, index)
    small = orthogonal(0.1) if per_channel else orthogonal()
    return {
        "time_mix": {
            **mixes,
            "mix_g": mixes["mix_r"],
            "decay": constant(-6 + 5 * along ** (0.7 + 1.3 * later)),
            "bonus": constant(-3.0) if c.exponential_bonus else constant(bonus),
            "receptance": orthogonal(),
            "key": small,
            "value": orthogonal(),
            "gate": small,
            "output": "zeros",
            "norm/gamma": constant(((1 + index) / c.num_hidden_layers) ** 0.7),
            "norm/beta": "zeros",
        },
        "channel_mix": {**channel, "key": orthonormal()} if per_channel else channel,
    }
