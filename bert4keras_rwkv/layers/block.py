"""The residual block that all versions share."""

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.layers.base import Layer
from bert4keras_rwkv.layers.initial import blank, ones


def layer_norm(name, epsilon, dtype):
    """Keras' LayerNormalization. dtype: a dtype or policy."""
    start = {"gamma_initializer": ones, "beta_initializer": blank}
    return keras.layers.LayerNormalization(epsilon=epsilon, name=name, dtype=dtype, **start)


class Block(Layer):
    """x + time_mix(ln1(x)), then x + channel_mix(ln2(x)). State goes in, state comes out.

    A mixer is called with (x (B, T, D), its state, side) and returns (dx, its new state, side). `side` is a dict of
    what crosses layers: ids, present, reset (B, T) and rows (`ops.token_shift.shift_rows`), None where there is none,
    and whatever a version adds. A mixer's state holds "x", its last input, and for the time mix "wkv"; where documents
    begin within a text (`reset`) it may hold "start", the same two as they are there, zero without.

    scale: a power of two, by which the x that comes in is smaller than the model's (`rescale_layer`). What the mixers
    add is made smaller alike, before their last projection, and the norms get an epsilon that fits: all that lies
    between is what it would be at scale 1, to the last bit. halve: whether x is half as large again when it leaves.
    """

    def __init__(self, time_mix, channel_mix, epsilon, scale=1.0, halve=False, **kwargs):
        super().__init__(**kwargs)
        self.ln1, self.ln2 = (layer_norm(name, epsilon * scale**2, self.dtype_policy) for name in ("ln1", "ln2"))
        self.time_mix, self.channel_mix, self.halve = time_mix, channel_mix, halve
        time_mix.scale = channel_mix.scale = scale

    def build(self, shape):
        for layer in (self.ln1, self.ln2, self.time_mix, self.channel_mix):
            layer.build(shape)

    def call(self, x, state, side):
        dx, time_state, side = self.time_mix(self.ln1(x), state["time"], side)
        x = x + dx
        dx, channel_state, side = self.channel_mix(self.ln2(x), state["channel"], side)
        x = x + dx
        return x / 2 if self.halve else x, {"time": time_state, "channel": channel_state}, side
