"""RWKV-5 "Eagle" (arXiv 2404.05892), of which three variants were released.

'5.0' has no gate; '5.0' and '5.1' have one decay a head, '5.2' one a channel. The oldest files have the logarithm of
the bonus, `time_first`, later ones the bonus, `time_faaaa`.
"""

from bert4keras_rwkv.versions.rwkv4 import CHANNEL_MIX_RULES
from bert4keras_rwkv.versions.shapes import HEADS, heads_of, narrower, shape_of
from bert4keras_rwkv.versions.table import TRANSPOSE, VECTOR, Rule, model_rules
from bert4keras_rwkv.versions.version import Version

VARIANTS = ("5.0", "5.1", "5.2")
DECAY = "blocks.0.att.time_decay"


def number_of(shapes):
    """The variant, by the shape of the decay and whether there is a gate."""
    if "blocks.0.att.ln_x.weight" not in shapes:
        return None
    decay, channels = tuple(shapes.get(DECAY, ())), tuple(shapes["emb.weight"][-1:])
    if len(decay) == 2 and (decay[1] > 1 or decay[:1] == channels):  # as many heads as channels: heads of one
        return "5.2"
    return "5.1" if "blocks.0.att.gate.weight" in shapes else "5.0"


def sizes(shapes, number):
    """Heads, the variant, and which of its two names the bonus has."""
    heads, *_ = shape_of(shapes, DECAY, max(len(shapes.get(DECAY, ())), 1))
    bonus = {"exponential_bonus": "blocks.0.att.time_first" in shapes}
    return {**heads_of(shapes, heads), "variant": number, **bonus}


def defaults(hidden_size, keys):
    """A 5.2, unless another variant is named."""
    wide = 4 * hidden_size if keys.get("variant") == "5.0" else narrower(hidden_size)
    return {"intermediate_size": wide, "variant": "5.2", "exponential_bonus": False}


def rules(config):
    """The weight table, from official names to variables."""
    gated, bonus = config.variant != "5.0", "time_first" if config.exponential_bonus else "time_faaaa"
    mixers = [
        *(Rule(f"att.time_mix_{m}", f"time_mix/mix_{m}", VECTOR) for m in ("kvrg" if gated else "kvr")),
        Rule("att.time_decay", "time_mix/decay"),
        Rule(f"att.{bonus}", "time_mix/bonus"),
        Rule("att.receptance.weight", "time_mix/receptance/kernel", TRANSPOSE),
        Rule("att.key.weight", "time_mix/key/kernel", TRANSPOSE),
        Rule("att.value.weight", "time_mix/value/kernel", TRANSPOSE),
        Rule("att.output.weight", "time_mix/output_projection/kernel", TRANSPOSE),
        *([Rule("att.gate.weight", "time_mix/gate/kernel", TRANSPOSE)] if gated else []),
        Rule("att.ln_x.weight", "time_mix/norm/gamma"),
        Rule("att.ln_x.bias", "time_mix/norm/beta"),
        *CHANNEL_MIX_RULES,
        Rule("att.time_state", None),  # a tuned initial state that was merged into the file
    ]
    return model_rules(config, lambda index: mixers)


VERSION = Version(
    name="rwkv5",
    numbers=VARIANTS,
    keys={**dict.fromkeys(HEADS), "variant": VARIANTS, "exponential_bonus": (False, True)},
    number_of=number_of,
    sizes=sizes,
    defaults=defaults,
    rules=rules,
)
