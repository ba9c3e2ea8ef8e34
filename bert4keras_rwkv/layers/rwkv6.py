"""RWKV-6 "Finch": token shift and decay depend on the data (Eagle and Finch, arXiv 2404.05892, section 4)."""

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer, cast_like, recurrent, scaled, shifted
from bert4keras_rwkv.layers.head_norm import HeadNorm
from bert4keras_rwkv.layers.initial import constant, orthonormal, uniform
from bert4keras_rwkv.layers.low_rank import LowRank
from bert4keras_rwkv.layers.projection import dense
from bert4keras_rwkv.layers.rwkv4 import ChannelMix as EarlierChannelMix
from bert4keras_rwkv.layers.rwkv4 import mixed
from bert4keras_rwkv.ops.backend import materialise
from bert4keras_rwkv.ops.kernels.choose import check_kernel
from bert4keras_rwkv.ops.wkv6 import wkv6
from bert4keras_rwkv.versions.rwkv6 import MIXED


class TimeMix(Layer):
    """Linear attention with a matrix-valued state and a decay for every channel and token."""

    def __init__(self, config, index, initial, kernel="auto", **kwargs):
        super().__init__(**kwargs)
        c, policy = config, self.dtype_policy
        self.heads, self.head_size = c.num_attention_heads, c.attention_head_size
        self.kernel, self.initial = check_kernel(kernel, self.compute_dtype), initial
        attention = self.heads * self.head_size

        def low_rank(name, units, rank, **more):
            start = {part: initial.get(f"{name}/{part}") for part in ("a", "b", "bias")}
            return LowRank(units, rank, start, name=name, dtype=policy, **more)

        self.mix_low_rank = low_rank("mix_low_rank", c.hidden_size, c.decomposer_size, groups=len(MIXED))
        self.decay_low_rank = low_rank("decay_low_rank", attention, c.time_decay_size)
        self.receptance, self.key, self.value, self.gate = (
            dense(attention, name, initial[name], policy) for name in ("receptance", "key", "value", "gate")
        )
        self.output_projection = dense(c.hidden_size, "output", initial["output"], policy)
        self.norm = HeadNorm(
            c.group_norm_epsilon, initial["norm/gamma"], initial["norm/beta"], name="norm", dtype=policy
        )

    def build(self, shape):
        D, attention = shape[-1], self.heads * self.head_size
        self.mix_x = self.add("mix_x", (D,), self.initial["mix_x"])
        self.decay = self.add("decay", (attention,), self.initial["decay"])
        self.bonus = self.add("bonus", (self.heads, self.head_size), self.initial["bonus"])
        layers = (self.mix_low_rank, self.decay_low_rank, self.receptance, self.key, self.value, self.gate)
        for layer in layers:
            layer.build(shape)
        self.output_projection.build((*shape[:-1], attention))
        self.norm.build((*shape[:-1], self.heads, self.head_size))

    def call(self, x, state, side):
        previous, last = shifted(x, state, side)
        change = materialise(previous - x)  # and so its gradient, which else is computed for x and its predecessor
        mixes = self.mix_low_rank.apart(x + change * cast_like(self.mix_x, x))
        xw, xk, xv, xr, xg = (x + change * mix for mix in mixes)
        r, k, v = self._heads(self.receptance(xr)), self._heads(self.key(xk)), self._heads(self.value(xv))
        w = -ops.exp(ops.cast(self.decay, state["wkv"].dtype) + ops.cast(self.decay_low_rank(xw), state["wkv"].dtype))
        y, wkv = wkv6(r, self._heads(w), k, v, self.bonus, *recurrent(state, side), kernel=self.kernel)
        y = ops.cast(self.norm(y), x.dtype) * ops.silu(self.gate(xg))
        return self.output_projection(scaled(y, self.scale)), {"x": last, "wkv": wkv}, side

    def _heads(self, x):
        return ops.reshape(x, (*ops.shape(x)[:2], self.heads, self.head_size))


class ChannelMix(EarlierChannelMix):
    """RWKV-4's, but its mixing vectors are the share of the predecessor."""

    def _mixed(self, x, previous, mix):
        return mixed(previous, x, mix)


def initial_values(config, index):
    """Initializers of one block as its authors start training (RWKV-LM, RWKV-v5/src/model.py, x060).

    Returns {'time_mix' | 'channel_mix' | 'ln1' | ...: name -> initializer}.
    """
    c = config
    later = index / max(c.num_hidden_layers - 1, 1)  # 0 in the first layer, 1 in the last
    fade = 1 - index / c.num_hidden_layers  # 1 in the first layer, nearly 0 in the last
    channel = np.arange(c.hidden_size) / c.hidden_size
    attention = c.num_attention_heads * c.attention_head_size
    n = np.arange(attention)
    along = n / max(attention - 1, 1)

    keep = 1 - channel**fade
    slow = 1 - channel ** (0.5 * fade)
    mixes = {"w": keep, "k": keep, "v": 1 - (channel**fade + 0.3 * later), "r": slow, "g": slow}
    return {
        "time_mix": {
            "mix_x": constant(keep),
            "mix_low_rank/a": "zeros",
            "mix_low_rank/b": uniform(0.01),
            "mix_low_rank/bias": constant(np.stack([mixes[m] for m in MIXED])),
            "decay": constant(-6 + 5 * along ** (0.7 + 1.3 * later)),
            "decay_low_rank/a": "zeros",
            "decay_low_rank/b": uniform(0.01),
            "bonus": constant(
                (later * (1 - along) + 0.1 * ((n + 1) % 3 - 1)).reshape(c.num_attention_heads, c.attention_head_size)
            ),
            "receptance": orthonormal(),
            "key": orthonormal(0.1),
            "value": orthonormal(),
            "gate": orthonormal(0.1),
            "output": "zeros",
            "norm/gamma": constant(np.full(attention, ((1 + index) / c.num_hidden_layers) ** 0.7)),
            "norm/beta": "zeros",
        },
        "channel_mix": {
            "mix_k": constant(keep),
            "mix_r": constant(keep),
            "key": orthonormal(),
            "value": "zeros",
            "receptance": "zeros",
        },
    }
