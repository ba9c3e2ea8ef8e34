"""RWKV-7 "Goose": a state that unlearns before it learns, and four products of low rank (arXiv 2503.14456)."""

from bert4keras_rwkv.versions.shapes import HEADS, heads_of, shape_of
from bert4keras_rwkv.versions.table import STACK, TRANSPOSE, VECTOR, Rule, model_rules
from bert4keras_rwkv.versions.version import Version

MIXED = "rwkvag"  # the order in which files hold the six mixed inputs
RANKS = {"decay_low_rank_dim": "w", "a_low_rank_dim": "a", "v_low_rank_dim": "v", "gate_low_rank_dim": "g"}


def ranks(hidden_size):
    """The ranks as the authors chose them for released sizes (RWKV-LM, v5 x070); multiples of 32."""

    def rank(share, power):
        return max(32, round(share * hidden_size**power / 32) * 32)

    return {
        "decay_low_rank_dim": rank(1.8, 0.5),
        "a_low_rank_dim": rank(1.8, 0.5),
        "v_low_rank_dim": rank(1.3, 0.5),
        "gate_low_rank_dim": 128 if hidden_size == 1024 else rank(0.6, 0.8),
    }


def sizes(shapes, number):
    """Heads and the four ranks. The value residual's is that of layer 1: in layer 0 it may be missing or a copy."""
    found = ranks(shape_of(shapes, "emb.weight", 2)[1])
    for key, letter in RANKS.items():
        layer = next((i for i in (1, 0) if f"blocks.{i}.att.v1" in shapes), None) if letter == "v" else 0
        if layer is not None:
            found[key] = shape_of(shapes, f"blocks.{layer}.att.{letter}1", 2)[1]
    return {**heads_of(shapes, shape_of(shapes, "blocks.0.att.r_k", 2)[0]), **found}


def rules(config):
    """The weight table, from official names to variables.

    The first block has no use for `v0`, `v1`, `v2`; files may hold them, some as copies of others.
    """

    def low_rank(letter, path):
        return [Rule(f"att.{letter}{i}", f"time_mix/{path}/{part}/kernel") for i, part in ((1, "a"), (2, "b"))]

    def mixers(index):
        value = [*low_rank("v", "value_low_rank")[::-1], Rule("att.v0", "time_mix/value_mix", VECTOR)]
        return [
            Rule(tuple(f"att.x_{m}" for m in MIXED), "time_mix/mix", STACK),
            Rule("att.w0", "time_mix/decay", VECTOR),
            Rule("att.r_k", "time_mix/bonus"),
            *low_rank("w", "decay_low_rank"),
            *low_rank("a", "rate_low_rank"),
            Rule("att.a0", "time_mix/rate", VECTOR),
            *low_rank("g", "gate_low_rank"),
            *(value if index else [Rule(rule.source, None) for rule in value]),
            Rule("att.k_k", "time_mix/key_scale", VECTOR),
            Rule("att.k_a", "time_mix/key_rate", VECTOR),
            Rule("att.receptance.weight", "time_mix/receptance/kernel", TRANSPOSE),
            Rule("att.key.weight", "time_mix/key/kernel", TRANSPOSE),
            Rule("att.value.weight", "time_mix/value/kernel", TRANSPOSE),
            Rule("att.output.weight", "time_mix/output_projection/kernel", TRANSPOSE),
            Rule("att.ln_x.weight", "time_mix/norm/gamma"),
            Rule("att.ln_x.bias", "time_mix/norm/beta"),
            Rule("ffn.x_k", "channel_mix/mix_k", VECTOR),
            Rule("ffn.key.weight", "channel_mix/key/kernel", TRANSPOSE),
            Rule("ffn.value.weight", "channel_mix/value/kernel", TRANSPOSE),
            Rule("att.time_state", None),  # a tuned initial state that was merged into the file
        ]

    return model_rules(config, mixers)


VERSION = Version(
    name="rwkv7",
    numbers=("7",),
    keys=dict.fromkeys((*HEADS, *RANKS)),
    number_of=lambda shapes: "7" if "blocks.0.att.r_k" in shapes else None,
    sizes=sizes,
    defaults=lambda hidden_size, keys: {"intermediate_size": 4 * hidden_size, **ranks(hidden_size)},
    rules=rules,
)
