"""How the toy version computes."""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.base import Layer, cast_like, recurrent, scaled, shifted
from bert4keras_rwkv.layers.initial import constant, orthonormal
from bert4keras_rwkv.layers.projection import dense
from bert4keras_rwkv.layers.rwkv7 import ChannelMix
from bert4keras_rwkv.ops.wkv5 import wkv5

__all__ = ["ChannelMix", "TimeMix", "initial_values"]

PROJECTIONS = ("receptance", "key", "value", "output_projection")


class TimeMix(Layer):
    """Linear attention; the bonus of a channel is the sum of its toys."""

    def __init__(self, config, index, initial, kernel="auto", **kwargs):
        super().__init__(**kwargs)
        self.shape = (config.num_attention_heads, config.attention_head_size)
        self.kernel, self.initial, self.kinds = kernel, initial, config.toys
        for name in PROJECTIONS:
            setattr(self, name, dense(config.hidden_size, name, initial[name], self.dtype_policy))

    def build(self, shape):
        self.mix = self.add("mix", (shape[-1],), self.initial["mix"])
        self.decay = self.add("decay", self.shape, self.initial["decay"])
        self.toys = self.add("toys", (self.kinds, *self.shape), self.initial["toys"])
        for name in PROJECTIONS:
            getattr(self, name).build(shape)

    def call(self, x, state, side):
        previous, last = shifted(x, state, side)
        mixed = previous + (x - previous) * cast_like(self.mix, x)
        r, k, v = (
            ops.reshape(project(mixed), (*ops.shape(x)[:2], *self.shape))
            for project in (self.receptance, self.key, self.value)
        )
        exact = state["wkv"].dtype
        w, u = -ops.exp(ops.cast(self.decay, exact)), ops.sum(ops.cast(self.toys, exact), axis=0)
        y, wkv = wkv5(r, w, k, v, u, *recurrent(state, side), kernel=self.kernel)
        y = ops.cast(ops.reshape(ops.tanh(y), (*ops.shape(x)[:2], -1)), x.dtype)
        return self.output_projection(scaled(y, self.scale)), {"x": last, "wkv": wkv}, side


def initial_values(config, index):
    """Initializers of one block: {'time_mix' | 'channel_mix': name -> initializer}."""
    return {
        "time_mix": {
            "mix": constant(0.5),
            "decay": constant(-2.0),
            "toys": constant(0.3),
            **{name: orthonormal() for name in PROJECTIONS[:3]},
            "output_projection": "zeros",
        },
        "channel_mix": {"mix_k": constant(0.5), "key": orthonormal(), "value": "zeros"},
    }
