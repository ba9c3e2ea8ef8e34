"""RWKV-6 "Finch": token shift and decay depend on the data, by products of low rank (arXiv 2404.05892)."""

from bert4keras_rwkv.versions.shapes import HEADS, heads_of, narrower, shape_of
from bert4keras_rwkv.versions.table import STACK, TRANSPOSE, VECTOR, Rule, model_rules
from bert4keras_rwkv.versions.version import Version

MIXED = "wkvrg"  # the order in which files hold the five mixed inputs


def sizes(shapes, number):
    """Heads and the two ranks."""
    return {
        **heads_of(shapes, shape_of(shapes, "blocks.0.att.time_faaaa", 2)[0]),
        "decomposer_size": shape_of(shapes, "blocks.0.att.time_maa_w1", 2)[1] // len(MIXED),
        "time_decay_size": shape_of(shapes, "blocks.0.att.time_decay_w1", 2)[1],
    }


def defaults(hidden_size, keys):
    """From a width of 4096 on both ranks are twice as large."""
    ranks = (64, 128) if hidden_size >= 4096 else (32, 64)
    return {
        "intermediate_size": narrower(hidden_size),
        **dict(zip(("decomposer_size", "time_decay_size"), ranks, strict=True)),
    }


def rules(config):
    """The weight table, from official names to variables."""
    mixers = [
        Rule("att.time_maa_x", "time_mix/mix_x", VECTOR),
        Rule(tuple(f"att.time_maa_{m}" for m in MIXED), "time_mix/mix_low_rank/b/bias", STACK),
        Rule("att.time_maa_w1", "time_mix/mix_low_rank/a/kernel"),
        Rule("att.time_maa_w2", "time_mix/mix_low_rank/b/kernel"),
        Rule("att.time_decay", "time_mix/decay", VECTOR),
        Rule("att.time_decay_w1", "time_mix/decay_low_rank/a/kernel"),
        Rule("att.time_decay_w2", "time_mix/decay_low_rank/b/kernel"),
        Rule("att.time_faaaa", "time_mix/bonus"),
        Rule("att.receptance.weight", "time_mix/receptance/kernel", TRANSPOSE),
        Rule("att.key.weight", "time_mix/key/kernel", TRANSPOSE),
        Rule("att.value.weight", "time_mix/value/kernel", TRANSPOSE),
        Rule("att.output.weight", "time_mix/output_projection/kernel", TRANSPOSE),
        Rule("att.gate.weight", "time_mix/gate/kernel", TRANSPOSE),
        Rule("att.ln_x.weight", "time_mix/norm/gamma"),
        Rule("att.ln_x.bias", "time_mix/norm/beta"),
        Rule("ffn.time_maa_k", "channel_mix/mix_k", VECTOR),
        Rule("ffn.time_maa_r", "channel_mix/mix_r", VECTOR),
        Rule("ffn.key.weight", "channel_mix/key/kernel", TRANSPOSE),
        Rule("ffn.receptance.weight", "channel_mix/receptance/kernel", TRANSPOSE),
        Rule("ffn.value.weight", "channel_mix/value/kernel", TRANSPOSE),
        Rule("att.time_state", None),  # a tuned initial state that was merged into the file
    ]
    return model_rules(config, lambda index: mixers)


VERSION = Version(
    name="rwkv6",
    numbers=("6",),
    keys=dict.fromkeys((*HEADS, "decomposer_size", "time_decay_size")),
    number_of=lambda shapes: "6" if "blocks.0.att.time_maa_x" in shapes else None,
    sizes=sizes,
    defaults=defaults,
    rules=rules,
)
