"""What a model is: its version and sizes, from a JSON file, from keywords, or from the shapes of a weight file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert4keras_rwkv.untrusted import parse_json, printable, regular, shown
from bert4keras_rwkv.versions import version_named, version_of, versions
from bert4keras_rwkv.versions.shapes import HEADS, shape_of

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
    "_name_or_path", "architectures", "attention_caches", "attention_dropout_rate", "attention_key_size",
    "attention_probs_dropout_prob", "auto_map", "autoresize_weights", "bos_token_id", "context_length", "dtype",
    "eos_token_id", "hidden_act", "ignore_invalid_weights", "initializer_range", "layer_norm_cond",
    "layer_norm_cond_hidden_act", "layer_norm_cond_hidden_size", "max_position", "max_position_embeddings",
    "model_max_length", "o_bias", "pad_token_id", "quantization", "query_head", "rescale_every",
    "residual_attention_scores", "segment_attention", "segment_vocab_size", "template", "torch_dtype",
    "transformers_version", "type_vocab_size", "unverified", "use_cache", "vocabulary",
))  # fmt: skip
# Keys of bert4keras3 that would change how a model trains, had it what they set; nothing else than 0 is taken.
DROPOUT = ("dropout_rate", "hidden_dropout_prob")
# Sizes of other configurations that are the hidden size here.
WIDTHS = ("attention_hidden_size", "embedding_size")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
EPSILONS = {"group_norm_epsilon": 64e-5, "layer_norm_epsilon": 1e-5}
COMMON = (*SIZES, *EPSILONS)
LARGEST = 1 << 31  # no size is beyond it; what a file claims is
MOST_LAYERS = 1000  # many times those of the deepest released one
LARGEST_FILE = 1 << 20  # bytes of a JSON file; a config has about a thousand


@dataclass(frozen=True, init=False, repr=False)
class RWKVConfig:
    """Version and sizes of a model.

    Keys of one version only are attributes too, None for a model of another: `num_attention_heads` and
    `attention_head_size` from RWKV-5 on.
    `variant` and `exponential_bonus` are RWKV-5's: '5.0' (no gate), '5.1' (a decay for each head) or '5.2' (for each
    channel); whether the bonus is exp(`time_first`), as in its oldest files, or `time_faaaa` itself.
    `decomposer_size` and `time_decay_size` are RWKV-6's two ranks, of the token-shift mix (`time_maa_w1`) and of the
    decay. The four `..._low_rank_dim` are RWKV-7's ranks, of `w1`, `a1`, `v1` and `g1`.
    `group_norm_epsilon` is not stored in any weight file: 64e-5 is what every official program computes with.

    own: the keys of its version and their values, as pairs.
    """

    model: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    group_norm_epsilon: float = 64e-5
    layer_norm_epsilon: float = 1e-5
    own: tuple = ()

    def __init__(self, model, *, own=(), **keys):
        version = version_named(model)
        given = {**dict(own), **{name: value for name, value in keys.items() if value is not None}}
        _check_names(version, given)
        values = {"model": model, **{name: given.get(name, EPSILONS.get(name)) for name in COMMON}}
        for name, value in {**values, "own": tuple((name, given[name]) for name in version.keys)}.items():
            object.__setattr__(self, name, value)
        for name in (*SIZES, *(name for name, allowed in version.keys.items() if allowed is None)):
            if not _is_size(given[name]):
                raise ValueError(f"`{name}` is a positive whole number. Received: {name}={shown(given[name])}.")
        if self.num_hidden_layers > MOST_LAYERS:
            raise ValueError(
                f"A model has at most {MOST_LAYERS} layers. Received: num_hidden_layers={self.num_hidden_layers}."
            )
        for name, allowed in version.keys.items():
            if allowed is not None and (type(given[name]) is not type(allowed[0]) or given[name] not in allowed):
                expected = "true or false" if allowed == (False, True) else f"one of {', '.join(map(repr, allowed))}"
                raise ValueError(f"`{name}` is {expected}. Received: {name}={shown(given[name])}.")
        for name in EPSILONS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST:
                raise ValueError(f"`{name}` is a positive number. Received: {name}={shown(value)}.")
        if self.num_attention_heads and self.num_attention_heads * self.attention_head_size != self.hidden_size:
            raise ValueError(
                "The heads share the hidden size: num_attention_heads * attention_head_size = hidden_size. Received: "
                f"{self.num_attention_heads} * {self.attention_head_size}, hidden_size={self.hidden_size}."
            )

    def __getattr__(self, name):
        if name.startswith("_") or name not in _own_names():
            raise AttributeError(f"An RWKVConfig has no '{name}'.")
        return dict(self.own).get(name)

    def __repr__(self):
        return f"RWKVConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    @classmethod
    def from_dict(cls, keys):
        """Config from a mapping with bert4keras or Hugging Face keys; what follows from other keys may be left out."""
        return cls(**_completed(_renamed(keys)))

    @classmethod
    def from_json(cls, path):
        """Config from a JSON file. An unreadable one is a `ValueError` that names the file."""
        if Path(regular(path, "Configs")).stat().st_size > LARGEST_FILE:
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
            raise ValueError(printable(f"'{path}': {error}")) from error

    @classmethod
    def from_shapes(cls, shapes):
        """Config from a mapping official name -> shape; all is read from names and shapes, nothing guessed."""
        version, number = version_of(shapes)
        return cls(model=version.name, **_common_sizes(shapes), **version.sizes(shapes, number))

    def rules(self):
        """The weight table of such a model: `versions.table.Rule`s, in the order of a released file."""
        return version_named(self.model).rules(self)

    def to_dict(self):
        """The keys of a `config.json`, as `from_dict` takes them."""
        return {
            "model": self.model,
            **{name: getattr(self, name) for name in SIZES},
            **dict(self.own),
            **{name: getattr(self, name) for name in EPSILONS},
        }


def _own_names():
    """The keys that some version has and not every one."""
    return {name for version in versions().values() for name in version.keys}


def _check_names(version, given):
    """Every key of this version is there, and none of another."""
    missing = sorted(name for name in (*SIZES, *version.keys) if name not in given)
    if missing:
        raise ValueError(f"Missing config keys of an {version.name}: {', '.join(missing)}.")
    foreign = sorted(name for name in given if name not in (*COMMON, *version.keys))
    if foreign:
        own = ", ".join(version.keys) or "none"
        raise ValueError(f"An {version.name} has no {', '.join(foreign)}. Its own keys: {own}.")


def _is_size(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST


def _common_sizes(shapes):
    """The sizes every version has, from official names and shapes."""
    vocab_size, hidden_size = shape_of(shapes, "emb.weight", 2)
    intermediate_size, _ = shape_of(shapes, "blocks.0.ffn.key.weight", 2)
    attention_size, _ = shape_of(shapes, "blocks.0.att.key.weight", 2)
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


def _renamed(keys):
    """The keys under the names used here; Hugging Face keys without meaning here are dropped, unknown ones are an
    error.
    """
    if not isinstance(keys, Mapping):
        raise ValueError(f"A config is a mapping of keys. Received: {type(keys).__name__}.")
    names = ["model", *SIZES, *sorted(_own_names()), *EPSILONS]
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
    if "model" not in result:  # a key that one version has alone tells it
        telling = ((version, set(version.keys) - set(HEADS)) for _, version in sorted(versions().items()))
        found = next((version.name for version, names in telling if names & set(result)), None)
        result |= {} if found is None else {"model": found}
    hidden_size, model = result.get("hidden_size"), result.get("model")
    if _is_size(hidden_size) and model in tuple(versions()):
        version = version_named(model)
        heads, head_size = (result.get(name) for name in HEADS)
        if heads is None and isinstance(head_size, int) and head_size > 0:
            result["num_attention_heads"] = hidden_size // head_size
        if head_size is None and isinstance(heads, int) and heads > 0:
            result["attention_head_size"] = hidden_size // heads
        for name, value in version.defaults(hidden_size, result).items():
            result.setdefault(name, value)
    missing = [name for name in ("model", *SIZES) if name not in result]
    if missing:
        raise ValueError(f"Missing config keys: {', '.join(missing)}. Received: {', '.join(map(str, keys)) or 'none'}.")
    return result
