"""A version that nobody released: one matrix a block mixes tokens, with a learned decay; no gate, no norm of heads."""

from bert4keras_rwkv.versions.shapes import HEADS, heads_of, shape_of
from bert4keras_rwkv.versions.table import TRANSPOSE, VECTOR, Rule, model_rules
from bert4keras_rwkv.versions.version import Version

PROJECTIONS = ("receptance", "key", "value")


def sizes(shapes, number):
    """Heads, and how many kinds of toys."""
    toys, heads, _ = shape_of(shapes, "blocks.0.att.toys", 3)
    return {**heads_of(shapes, heads), "toys": toys}


def rules(config):
    """The weight table, from official names to variables."""
    mixers = [
        Rule("att.toys", "time_mix/toys"),
        Rule("att.time_mix", "time_mix/mix", VECTOR),
        Rule("att.time_decay", "time_mix/decay"),
        *(Rule(f"att.{name}.weight", f"time_mix/{name}/kernel", TRANSPOSE) for name in PROJECTIONS),
        Rule("att.output.weight", "time_mix/output_projection/kernel", TRANSPOSE),
        Rule("ffn.time_mix", "channel_mix/mix_k", VECTOR),
        Rule("ffn.key.weight", "channel_mix/key/kernel", TRANSPOSE),
        Rule("ffn.value.weight", "channel_mix/value/kernel", TRANSPOSE),
        Rule("att.time_state", None),
    ]
    return model_rules(config, lambda index: mixers)


VERSION = Version(
    name="rwkv9",
    numbers=("9",),
    keys=dict.fromkeys((*HEADS, "toys")),
    number_of=lambda shapes: "9" if "blocks.0.att.toys" in shapes else None,
    sizes=sizes,
    defaults=lambda hidden_size, keys: {"intermediate_size": 2 * hidden_size, "toys": 3},
    rules=rules,
)
