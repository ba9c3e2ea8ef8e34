"""The residual block that all versions share."""

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.layers.base import Layer
from bert4keras_rwkv.weights.loading import Rule
from bert4keras_rwkv.weights.transforms import TRANSPOSE


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
        self.ln1, self.ln2 = (
            keras.layers.LayerNormalization(epsilon=epsilon * scale**2, name=name, dtype=self.dtype_policy)
            for name in ("ln1", "ln2")
        )
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


def model_rules(config, mixers):
    """The whole weight table of a model, in the order of released files.

    mixers: a function of the block's number that gives the rules of its two mixers, with names below `blocks.0.` and
    paths below `blocks/0/`.
    """
    rules = [Rule("emb.weight", "embed/embeddings")]
    for i in range(config.num_hidden_layers):
        for norm in ("ln1", "ln2"):
            rules += _norm(f"blocks.{i}.{norm}", f"blocks/{i}/{norm}")
        if i == 0:
            rules += _norm("blocks.0.ln0", "ln0")
        rules += [_inside(i, rule) for rule in mixers(i)]
    return [*rules, *_norm("ln_out", "ln_out"), Rule("head.weight", "head/kernel", TRANSPOSE)]


def _inside(i, rule):
    """The rule of a mixer as that of a model."""
    names = tuple(f"blocks.{i}.{name}" for name in rule.names)
    return Rule(names, None if rule.path is None else f"blocks/{i}/{rule.path}", rule.transform)


def _norm(source, path):
    return [Rule(f"{source}.weight", f"{path}/gamma"), Rule(f"{source}.bias", f"{path}/beta")]
