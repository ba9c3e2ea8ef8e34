"""RWKV-4 "Dove": no heads and no ranks (arXiv 2305.13048)."""

from bert4keras_rwkv.versions.table import TRANSPOSE, VECTOR, Rule, model_rules
from bert4keras_rwkv.versions.version import Version

CHANNEL_MIX_RULES = (
    Rule("ffn.time_mix_k", "channel_mix/mix_k", VECTOR),
    Rule("ffn.time_mix_r", "channel_mix/mix_r", VECTOR),
    Rule("ffn.key.weight", "channel_mix/key/kernel", TRANSPOSE),
    Rule("ffn.receptance.weight", "channel_mix/receptance/kernel", TRANSPOSE),
    Rule("ffn.value.weight", "channel_mix/value/kernel", TRANSPOSE),
)


def rules(config):
    """The weight table, from official names to variables."""
    mixers = [
        Rule("att.time_decay", "time_mix/decay"),
        Rule("att.time_first", "time_mix/bonus"),
        Rule("att.time_mix_k", "time_mix/mix_k", VECTOR),
        Rule("att.time_mix_v", "time_mix/mix_v", VECTOR),
        Rule("att.time_mix_r", "time_mix/mix_r", VECTOR),
        Rule("att.key.weight", "time_mix/key/kernel", TRANSPOSE),
        Rule("att.value.weight", "time_mix/value/kernel", TRANSPOSE),
        Rule("att.receptance.weight", "time_mix/receptance/kernel", TRANSPOSE),
        Rule("att.output.weight", "time_mix/output_projection/kernel", TRANSPOSE),
        *CHANNEL_MIX_RULES,
    ]
    return model_rules(config, lambda index: mixers)


VERSION = Version(
    name="rwkv4",
    numbers=("4",),
    keys={},
    number_of=lambda shapes: None if "blocks.0.att.ln_x.weight" in shapes else "4",
    sizes=lambda shapes, number: {},
    defaults=lambda hidden_size, keys: {"intermediate_size": 4 * hidden_size},
    rules=rules,
)
