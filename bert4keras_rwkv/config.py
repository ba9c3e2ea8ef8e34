"""What a model is: its version and sizes, from a JSON file, from keywords, or from the shapes of a weight file."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from bert4keras_rwkv.untrusted import parse_json, shown, told

# Spellings of the Hugging Face configurations for the same keys.
ALIASES = {
    "model_type": "model",
    "head_size": "attention_head_size",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
}

# Keys of other configurations, of bert4keras3's for its other models too, and of our presets, that say nothing about
# sizes. `unverified` names the figures of a config in `configs/` that were never compared with a released file; what a
# file says always wins.
UNUSED = frozenset((
    "_name_or_path", "architectures", "attention_dropout_rate", "attention_key_size", "attention_probs_dropout_prob",
    "auto_map", "bos_token_id", "context_length", "dtype", "eos_token_id", "hidden_act", "initializer_range",
    "max_position", "max_position_embeddings", "model_max_length", "pad_token_id", "rescale_every",
    "segment_vocab_size", "torch_dtype", "transformers_version", "type_vocab_size", "unverified", "use_cache",
))  # fmt: skip
# Keys of bert4keras3 that would change how a model trains, had it what they set; nothing else than 0 is taken.
DROPOUT = ("dropout_rate", "hidden_dropout_prob")
# Sizes of other configurations that are the hidden size here.
WIDTHS = ("attention_hidden_size", "embedding_size")

# Parts of names that only relatives of a known version have. The first hit names the relative.
RELATIVES = (
    ("rosa", "RWKV-8 with ROSA"),
    (".qkv.", "RWKV-7b (DeepEmbed with DEA attention)"),
    (".s_emb", "RWKV-7a (DeepEmbed)"),
    (".gate_w1", "RWKV-6 x060a (low-rank gate)"),
    (".time_maa_rkvw_w1", "RWKV-6 x060b or x060c (without a gate)"),
    (".tiny_", "RWKV-4a or 4b (with a tiny attention)"),
    ("head_q.", "an RWKV-4 with a head_qk"),
    ("head_k.", "an RWKV-4 with a head_qk"),
    (".ffnPre.", "an RWKV with a channel mix before its first block"),
    (".pos_emb_", "an RWKV with position embeddings"),
    (".ffn.aa.", "an RWKV with a MishGLU channel mix"),
)


HEADS = ("num_attention_heads", "attention_head_size")
# The keys that a model has beyond those of every model. A new version is a new entry here and in SIZES.
OWN_KEYS = {
    "rwkv4": (),
    "rwkv5": (*HEADS, "variant", "exponential_bonus"),
    "rwkv6": (*HEADS, "decomposer_size", "time_decay_size"),
    "rwkv7": (*HEADS, "decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"),
}
VARIANTS = ("5.0", "5.1", "5.2")
LARGEST = 1 << 31  # no size is beyond it; what a file claims is
LARGEST_FILE = 1 << 20  # bytes of a JSON file; a config has about a thousand


@dataclass(frozen=True)
class RWKVConfig:
    """Version and sizes of a model. Keys that its version does not have are None.

    `variant` and `exponential_bonus` are RWKV-5's: '5.0' (no gate), '5.1' (a decay for each head) or '5.2' (for each
    channel); whether the bonus is exp(`time_first`), as in its oldest files, or `time_faaaa` itself.
    `decomposer_size` and `time_decay_size` are RWKV-6's two ranks, of the token-shift mix (`time_maa_w1`) and of the
    decay. The four `..._low_rank_dim` are RWKV-7's ranks, of `w1`, `a1`, `v1` and `g1`.
    `group_norm_epsilon` is not stored in any weight file: 64e-5 is what every official program computes with.
    """

    model: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int | None = None
    attention_head_size: int | None = None
    variant: str | None = None
    exponential_bonus: bool | None = None
    decomposer_size: int | None = None
    time_decay_size: int | None = None
    decay_low_rank_dim: int | None = None
    a_low_rank_dim: int | None = None
    v_low_rank_dim: int | None = None
    gate_low_rank_dim: int | None = None
    group_norm_epsilon: float = 64e-5
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self):
        known_model(self.model)
        self._check_keys()
        for name in (field.name for field in fields(self) if field.type in (int, int | None)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST):
                raise ValueError(f"`{name}` is a positive whole number. Received: {name}={shown(value)}.")
        for name in ("group_norm_epsilon", "layer_norm_epsilon"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"`{name}` is a positive number. Received: {name}={shown(value)}.")
        if self.variant not in (None, *VARIANTS):
            raise ValueError(f"`variant` is one of {', '.join(VARIANTS)}. Received: variant={shown(self.variant)}.")
        if self.exponential_bonus not in (None, False, True):
            raise ValueError(f"`exponential_bonus` is true or false. Received: {shown(self.exponential_bonus)}.")
        if self.num_attention_heads and self.num_attention_heads * self.attention_head_size != self.hidden_size:
            raise ValueError(
                "The heads share the hidden size: num_attention_heads * attention_head_size = hidden_size. Received: "
                f"{self.num_attention_heads} * {self.attention_head_size}, hidden_size={self.hidden_size}."
            )

    def _check_keys(self):
        """Every key of this version is there, and none of another."""
        own = OWN_KEYS[self.model]
        every = {field.name for field in fields(self) if field.default is MISSING} | set(own)
        missing = sorted(name for name in every if getattr(self, name) is None)
        if missing:
            raise ValueError(f"Missing config keys of an {self.model}: {', '.join(missing)}.")
        others = {name for names in OWN_KEYS.values() for name in names} - set(own)
        foreign = sorted(name for name in others if getattr(self, name) is not None)
        if foreign:
            raise ValueError(f"An {self.model} has no {', '.join(foreign)}. Its own keys: {', '.join(own) or 'none'}.")

    @classmethod
    def from_dict(cls, keys):
        """Config from a mapping with bert4keras or Hugging Face keys; what follows from other keys may be left out."""
        return cls(**_completed(_renamed(keys)))

    @classmethod
    def from_json(cls, path):
        """Config from a JSON file. An unreadable one is a `ValueError` that names the file."""
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ValueError(f"'{path}' has {Path(path).stat().st_size} bytes, far more than a model's config.json.")
        try:
            keys = parse_json(Path(path).read_bytes(), f"'{path}'")
        except ValueError as error:
            raise ValueError(f"{error} A model's config.json is wanted.") from error
        if not isinstance(keys, dict):
            raise ValueError(f"'{path}' holds a JSON {type(keys).__name__}. A config is an object with keys.")
        try:
            return cls.from_dict(keys)
        except ValueError as error:
            raise ValueError(told(f"'{path}': {error}")) from error

    @classmethod
    def from_shapes(cls, shapes):
        """Config from a mapping official name -> shape; all is read from names and shapes, nothing guessed."""
        version = weights_version(shapes)
        model = model_name(version)
        return cls(model=model, **_common_sizes(shapes), **SIZES[model](shapes, version))

    def to_dict(self):
        """The keys of a `config.json`, as `from_dict` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def weights_version(names):
    """The version, '4' to '7' ('5.0', '5.1', '5.2' within 5), that a mapping official name -> shape holds the weights
    of.

    Raises `ValueError` for weights of a relative, for weights already converted by the `rwkv` package, and for names
    that are no RWKV model's.
    """
    if "_strategy" in names:
        raise ValueError(
            "This file was converted by the `rwkv` package for one strategy (it has a '_strategy' entry): its "
            "embedding is already normalised and its matrices are transposed or quantised, which cannot be undone. "
            "Load the original file."
        )
    for part, relative in RELATIVES:
        found = next((name for name in names if part in name), None)
        if found:
            raise ValueError(f"These are weights of {relative}, which is not supported: the file has '{found}'.")
    missing = next(
        (name for name in ("emb.weight", "blocks.0.ffn.key.weight", "head.weight") if name not in names), None
    )
    if missing:
        some = ", ".join(f"'{name}'" for name in sorted(names)[:3]) or "nothing"
        raise ValueError(f"These are not the weights of an RWKV model: '{missing}' is missing. Found: {some}, ...")
    attention = {name.removeprefix("blocks.0.att.") for name in names if name.startswith("blocks.0.att.")}
    if "r_k" in attention:
        return "7"
    if "time_maa_x" in attention:
        return "6"
    if "ln_x.weight" not in attention:
        return "4"
    decay = names["blocks.0.att.time_decay"] if "time_decay" in attention else ()
    every_channel = tuple(names["emb.weight"][-1:])  # as many heads as channels: heads of one
    if len(decay) == 2 and (decay[1] > 1 or tuple(decay[:1]) == every_channel):
        return "5.2"
    return "5.1" if "gate.weight" in attention else "5.0"


def model_name(version):
    """The name a version goes by in `build_transformer_model`: '6' -> 'rwkv6', '5.2' -> 'rwkv5'."""
    return f"rwkv{version.partition('.')[0]}"


def known_model(name):
    """`name` if a model of this name can be built, else a `ValueError` that says which can."""
    if name in tuple(OWN_KEYS):  # a JSON file may say anything, a dict too
        return name
    raise ValueError(f"The model {shown(name)} is not known. Known: {', '.join(map(repr, OWN_KEYS))}.")


def _common_sizes(shapes):
    """The sizes every version has, from official names and shapes."""
    vocab_size, hidden_size = _shape(shapes, "emb.weight", 2)
    intermediate_size, _ = _shape(shapes, "blocks.0.ffn.key.weight", 2)
    attention_size, _ = _shape(shapes, "blocks.0.att.key.weight", 2)
    if attention_size != hidden_size:
        raise ValueError(
            "Only models whose attention is as wide as the hidden size are supported, as every released one is. "
            f"Received: attention {attention_size}, hidden size {hidden_size}."
        )
    layers = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d{1,6})\.", name)))
    if layers > len(shapes):
        raise ValueError(f"There is a block {layers - 1}, and with {len(shapes)} tensors most blocks cannot be there.")
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate_size,
    }


def _sizes_4(shapes, version):
    """RWKV-4 has no heads and no ranks."""
    return {}


def _sizes_5(shapes, version):
    """Heads, the variant, and which of its two names the bonus has."""
    decay = tuple(shapes.get("blocks.0.att.time_decay", ()))
    return {
        **_heads(shapes, _shape(shapes, "blocks.0.att.time_decay", max(len(decay), 1))[0]),
        "variant": version,
        "exponential_bonus": "blocks.0.att.time_first" in shapes,
    }


def _sizes_6(shapes, version):
    """Heads and the two ranks."""
    return {
        **_heads(shapes, _shape(shapes, "blocks.0.att.time_faaaa", 2)[0]),
        "decomposer_size": _shape(shapes, "blocks.0.att.time_maa_w1", 2)[1] // 5,
        "time_decay_size": _shape(shapes, "blocks.0.att.time_decay_w1", 2)[1],
    }


def _sizes_7(shapes, version):
    """Heads and the four ranks. The value residual's is that of layer 1: in layer 0 it may be missing or a copy."""
    ranks = {key: _shape(shapes, f"blocks.0.att.{letter}1", 2)[1] for key, letter in RANKS_7.items() if letter != "v"}
    value = next((f"blocks.{i}.att.v1" for i in (1, 0) if f"blocks.{i}.att.v1" in shapes), None)
    rank = (
        _ranks_7(_shape(shapes, "emb.weight", 2)[1])["v_low_rank_dim"] if value is None else _shape(shapes, value, 2)[1]
    )
    return {**_heads(shapes, _shape(shapes, "blocks.0.att.r_k", 2)[0]), **ranks, "v_low_rank_dim": rank}


# The functions that read a model's own sizes from shapes.
SIZES = {"rwkv4": _sizes_4, "rwkv5": _sizes_5, "rwkv6": _sizes_6, "rwkv7": _sizes_7}
RANKS_7 = {"decay_low_rank_dim": "w", "a_low_rank_dim": "a", "v_low_rank_dim": "v", "gate_low_rank_dim": "g"}


def _ranks_7(hidden_size):
    """RWKV-7's ranks as the authors chose them for released sizes (RWKV-LM, v5 x070); multiples of 32."""

    def rank(share, power):
        return max(32, round(share * hidden_size**power / 32) * 32)

    gate = 128 if hidden_size == 1024 else rank(0.6, 0.8)
    return {
        "decay_low_rank_dim": rank(1.8, 0.5),
        "a_low_rank_dim": rank(1.8, 0.5),
        "v_low_rank_dim": rank(1.3, 0.5),
        "gate_low_rank_dim": gate,
    }


def _heads(shapes, heads):
    """The heads, of which there are so many."""
    width = _shape(shapes, "emb.weight", 2)[1]
    return {"num_attention_heads": heads, "attention_head_size": width // max(heads, 1)}


def _shape(shapes, name, dimensions):
    """The shape of `name`, which must be there with so many dimensions."""
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions:
        came = "it is missing" if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"'{name}' should have {dimensions} dimensions to tell the model's sizes. Received: {came}.")
    return tuple(shape)


def _renamed(keys):
    """The keys under the names used here; Hugging Face keys without meaning here are dropped, unknown ones are an
    error.
    """
    if not isinstance(keys, Mapping):
        raise ValueError(f"A config is a mapping of keys. Received: {type(keys).__name__}.")
    names = [field.name for field in fields(RWKVConfig)]
    result = {ALIASES.get(name, name): value for name, value in keys.items() if name not in UNUSED}
    if "head_size" in keys:  # the Hugging Face files give a head size as `num_attention_heads`, too
        result.pop("num_attention_heads", None)
    result["model"] = "rwkv4" if result.get("model") == "rwkv" else result.get("model")  # the built-in RWKV-4 of theirs
    if result.pop("tie_word_embeddings", False):
        raise ValueError("RWKV's output matrix is a weight of its own. Received: tie_word_embeddings=True.")
    for name in WIDTHS:
        width = result.pop(name, None)
        if width is not None and width != result.get("hidden_size"):
            raise ValueError(
                f"`{name}` must equal `hidden_size`. Received: {shown(width)} and hidden_size="
                f"{shown(result.get('hidden_size'))}."
            )
    for name in DROPOUT:
        rate = result.pop(name, None)
        if rate:
            raise ValueError(f"These models have no dropout. Received: {name}={shown(rate)}. Set it to 0.")
    divisor = result.pop("head_size_divisor", None)
    if divisor is not None:
        if isinstance(divisor, bool) or not isinstance(divisor, (int, float)) or not 0 < divisor < LARGEST:
            raise ValueError(f"`head_size_divisor` is a positive number. Received: {shown(divisor)}.")
        result.setdefault("group_norm_epsilon", 1e-5 * divisor**2)
    unknown = sorted(str(name) for name in result if name not in names)
    if unknown:
        raise ValueError(f"Unknown config keys: {', '.join(unknown)}. Known: {', '.join(names)}.")
    return {name: value for name, value in result.items() if value is not None}


def _completed(keys):
    """The keys with what follows from others filled in; what cannot be known is an error that names it."""
    result = dict(keys)
    told = [model for model, names in OWN_KEYS.items() if (set(names) - set(HEADS)) & set(result)]
    if "model" not in result and told:
        result["model"] = told[0]
    hidden_size, model = result.get("hidden_size"), result.get("model")
    if isinstance(hidden_size, int) and 0 < hidden_size < LARGEST and model in tuple(OWN_KEYS):
        heads, head_size = result.get("num_attention_heads"), result.get("attention_head_size")
        if heads is None and isinstance(head_size, int) and head_size > 0:
            result["num_attention_heads"] = hidden_size // head_size
        if head_size is None and isinstance(heads, int) and heads > 0:
            result["attention_head_size"] = hidden_size // heads
        for name, value in _defaults(model, hidden_size, result.get("variant")).items():
            result.setdefault(name, value)
    missing = [field.name for field in fields(RWKVConfig) if field.default is MISSING and field.name not in result]
    if missing:
        raise ValueError(f"Missing config keys: {', '.join(missing)}. Received: {', '.join(map(str, keys)) or 'none'}.")
    return result


def _defaults(model, hidden_size, variant):
    """The sizes that released models of this width have."""
    four, narrower = 4 * hidden_size, int(hidden_size * 3.5) // 32 * 32
    wide = hidden_size >= 4096  # both ranks of RWKV-6 double there
    return {
        "rwkv4": {"intermediate_size": four},
        "rwkv5": {
            "intermediate_size": four if variant == "5.0" else narrower,
            "variant": "5.2",
            "exponential_bonus": False,
        },
        "rwkv6": {
            "intermediate_size": narrower,
            "decomposer_size": 64 if wide else 32,
            "time_decay_size": 128 if wide else 64,
        },
        "rwkv7": {"intermediate_size": four, **_ranks_7(hidden_size)},
    }[model]
