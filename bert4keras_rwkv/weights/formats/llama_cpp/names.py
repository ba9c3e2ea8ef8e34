"""llama.cpp's names and layouts of RWKV-6 and RWKV-7: tables from official tensors to those of a GGUF file.

Shapes are in NumPy's order, which is the reverse of GGML's. A rule's `load` gives what a GGUF file holds and its
`save` the official tensors; no value changes.
"""

import numpy as np

from bert4keras_rwkv.versions.table import IDENTITY, VECTOR, Rule, Transform, split, stacked
from bert4keras_rwkv.weights.tensors import WeightsError

ARCHITECTURES = (b"rwkv6", b"rwkv7")

# The mixes of token shift lie in one tensor, in these orders.
FUSED = {"rwkv6": "wkvrg", "rwkv7": "rwkvag"}
# Programs that drop trailing sizes of 1 leave a vector where a rank is 1.
TURNED = Transform(load=lambda array: array.T, save=lambda array: np.atleast_2d(array).T)
BACKWARDS = Transform(load=lambda array: array.swapaxes(1, 2), save=lambda array: array.swapaxes(1, 2))
FUSE = Transform(
    load=lambda *parts: stacked(*parts)[:, None, None],
    save=lambda array: split(array.reshape(array.shape[0], -1)),
)
# llama.cpp wants a value residual in layer 0, which no RWKV-7 computes; its converter writes copies of these.
COPIES = {"v0": "a0", "v1": "a1", "v2": "a2"}


def gguf_rules(architecture, layers, head_size, fused=True, copies=False):
    """The table of a model in the order of a released file; its paths are names in a GGUF file.

    fused: False for old files of RWKV-6, with one tensor for each mix. copies: with layer 0's value residual, for
    writing, as the copies that llama.cpp's converter makes.
    """
    mixers = {"rwkv6": _mixers_6, "rwkv7": _mixers_7}[architecture]
    rules = [Rule("emb.weight", "token_embd.weight")]
    for i in range(layers):
        rules += _norm(f"blocks.{i}.ln1", f"blk.{i}.attn_norm") + _norm(f"blocks.{i}.ln2", f"blk.{i}.attn_norm_2")
        if i == 0:
            rules += _norm("blocks.0.ln0", "token_embd_norm")
        for rule in mixers(i, head_size, fused):
            names = tuple(f"blocks.{i}.{name}" for name in rule.names)
            rules.append(Rule(names, rule.path and f"blk.{i}.{rule.path}", rule.transform))
    rules += [*_norm("ln_out", "output_norm"), Rule("head.weight", "output.weight")]
    if architecture == "rwkv7" and copies:
        kinds = {"v0": VECTOR, "v1": TURNED, "v2": TURNED}
        rules += [Rule(f"blocks.0.att.{a}", f"blk.0.time_mix_{v}.weight", kinds[v]) for v, a in COPIES.items()]
    return rules


def layers_of(names):
    """How many layers the names of a GGUF file speak of."""
    numbers = {name.split(".")[1] for name in names if name.startswith("blk.")}
    missing = sorted({str(i) for i in range(len(numbers))} - numbers)
    if missing:
        raise WeightsError(f"Nothing is named 'blk.{missing[0]}...', though there are {len(numbers)} layers.")
    return len(numbers)


def _norm(official, theirs):
    return [Rule(f"{official}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def _rule(official, theirs, transform=IDENTITY):
    return Rule(official, f"{theirs}.weight", transform)


def _projections(*names):
    return [_rule(f"att.{name}.weight", f"time_mix_{name}") for name in names]


def _of_heads(head_size, load):
    """[H, N] of the official files, stored as `load` makes it."""
    return Transform(load=load, save=lambda array: array.reshape(-1, head_size))


def _mixers_6(i, head_size, fused):
    mixes = tuple(f"att.time_maa_{letter}" for letter in FUSED["rwkv6"])
    old = [_rule(name, f"time_mix_lerp_{name[-1]}", VECTOR) for name in mixes]
    return [
        _rule("att.time_maa_x", "time_mix_lerp_x", VECTOR),
        *([_rule(mixes, "time_mix_lerp_fused", FUSE)] if fused else old),
        _rule("att.time_maa_w1", "time_mix_w1", TURNED),
        _rule("att.time_maa_w2", "time_mix_w2", BACKWARDS),
        _rule("att.time_decay", "time_mix_decay", VECTOR),
        _rule("att.time_decay_w1", "time_mix_decay_w1", TURNED),
        _rule("att.time_decay_w2", "time_mix_decay_w2", TURNED),
        _rule("att.time_faaaa", "time_mix_first", _of_heads(head_size, lambda array: array)),
        *_projections("receptance", "key", "value", "output", "gate"),
        *_norm("att.ln_x", "time_mix_ln"),
        _rule("ffn.time_maa_k", "channel_mix_lerp_k", VECTOR),
        _rule("ffn.time_maa_r", "channel_mix_lerp_r", VECTOR),
        *(_rule(f"ffn.{name}.weight", f"channel_mix_{name}") for name in ("key", "receptance", "value")),
        Rule("att.time_state", None),
    ]


def _mixers_7(i, head_size, fused):
    def pair(letter):
        return [_rule(f"att.{letter}{n}", f"time_mix_{letter}{n}", TURNED) for n in (1, 2)]

    def bias(letter):
        return _rule(f"att.{letter}0", f"time_mix_{letter}0", VECTOR)

    value = [*reversed(pair("v")), bias("v")] if i else [Rule(f"att.{name}", None) for name in COPIES]
    return [
        _rule(tuple(f"att.x_{letter}" for letter in FUSED["rwkv7"]), "time_mix_lerp_fused", FUSE),
        bias("w"),
        _rule("att.r_k", "time_mix_r_k", _of_heads(head_size, lambda array: array.reshape(-1))),
        *pair("w"),
        *pair("a"),
        bias("a"),
        *pair("g"),
        *value,
        _rule("att.k_k", "time_mix_k_k", VECTOR),
        _rule("att.k_a", "time_mix_k_a", VECTOR),
        *_projections("receptance", "key", "value", "output"),
        *_norm("att.ln_x", "time_mix_ln"),
        _rule("ffn.x_k", "channel_mix_lerp_k", VECTOR),
        _rule("ffn.key.weight", "channel_mix_key"),
        _rule("ffn.value.weight", "channel_mix_value"),
        Rule("att.time_state", None),
    ]
