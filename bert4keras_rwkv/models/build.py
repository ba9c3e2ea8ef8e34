"""The parts of a model from a configuration and a weight file: the backbone with its weights, the tokenizer, and the
Keras model around them.
"""

import functools
import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.keras_loader import all_kept, keras
from bert4keras_rwkv.models.backbone import Backbone
from bert4keras_rwkv.models.placement import placed
from bert4keras_rwkv.models.plan import plan_for
from bert4keras_rwkv.models.quantization import AUTO, KEEP, Quantization, of_file
from bert4keras_rwkv.ops.backend import adopt, has_accelerator
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.strategy import Strategy, widest
from bert4keras_rwkv.tokenizers.base import Tokenizer
from bert4keras_rwkv.tokenizers.find import find_tokenizer, load_tokenizer
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.checkpoint import Origin, open_checkpoint
from bert4keras_rwkv.weights.loading import assign
from bert4keras_rwkv.weights.packed import as_packed, say_differences, stored_dtype
from bert4keras_rwkv.weights.surgery import surgery

logger = logging.getLogger("bert4keras_rwkv")


@all_kept()
def backbone_and_tokenizer(path, config_path, keys, tokenizer, keep_tokens, compound_tokens, numbers, **options):
    """A `Backbone`, the tokenizer that goes with it, or None, and the `Origin` of its weights.

    path: of a weight file, None for random weights. config_path: of a JSON file with the whole configuration, or None.
    keys: of a configuration, over what the files say where they are not None. tokenizer: one, its path, or None for
    that of the weights. numbers: `Numbers`. options: of `Backbone`; the other arguments are those of
    `build_transformer_model`.
    """
    if not isinstance(tokenizer, Tokenizer | str | os.PathLike | None):
        raise TypeError(f"`tokenizer` is one of `tokenizers`, a path, or None. Received: {shown(tokenizer)}.")
    keys = {name: value for name, value in keys.items() if value is not None}
    if config_path is not None:
        keys = {**RWKVConfig.from_json(config_path).to_dict(), **keys}
    whole = RWKVConfig.from_dict(keys) if config_path is not None or path is None else None
    with nullcontext() if path is None else open_checkpoint(path, whole) as checkpoint:
        config = whole or _config_over(checkpoint, keys)
        file_size = config.vocab_size
        cut = surgery(keep_tokens, compound_tokens, file_size)
        if cut is not None:
            config = replace(config, vocab_size=cut.size)
        tensors = None if checkpoint is None else checkpoint.tensors
        if tensors is not None and numbers.quantization == KEEP:
            tensors = as_packed(tensors)
        given = tensors
        tensors = tensors if cut is None or tensors is None else cut.applied(tensors, file_size)
        backbone = numbers.backbone(config, tensors, given, **options)
        if tensors is not None:
            load_weights(backbone, tensors)
            say_differences(given)
        origin = Origin() if checkpoint is None else checkpoint.origin
        return backbone, _tokenizer(tokenizer, checkpoint, file_size, cut), origin


@dataclass(frozen=True)
class Numbers:
    """In which dtype a model computes, how its matrices are stored, and where: arguments of `build_transformer_model`.

    A strategy says all of it.
    """

    dtype: object = None
    quantization: Quantization | None = None
    strategy: Strategy | None = None

    def __post_init__(self):
        if self.strategy is not None and (self.dtype is not None or self.quantization is not None):
            raise ValueError(
                "`strategy` says in which dtype each block is computed and how it is stored. Leave out `dtype` and "
                f"`quantization`. Received: strategy='{self.strategy}', dtype={shown(self.dtype)}, "
                f"quantization={shown(self.quantization)}."
            )

    def backbone(self, config, tensors, given, **options):
        """A `Backbone`, built, for the weights of a file, or with random ones if `tensors` is None.

        given: the tensors as the file has them; of a vocabulary that was cut, `tensors` have other rows.
        """
        places = None if self.strategy is None else self._places(config, tensors)
        if places is None:
            options |= self._alike(tensors, options.get("kernel", "auto"))
        else:
            dtypes = [place.dtype for place in places]
            options |= {"dtype": widest(places), "dtypes": dtypes if len(set(dtypes)) > 1 else None}
            options |= {"quantization": Quantization.of_places(places)}
        if tensors is not None:
            options["quantization"] = of_file(
                options["quantization"], config.rules(), given, tensors.dtypes["emb.weight"]
            )
        elif options["quantization"] == KEEP:
            raise ValueError("`quantization` 'keep' is as a file has its matrices. Give `checkpoint_path`, too.")
        backbone = Backbone(config, blank=tensors is not None, **options)
        if places is not None:
            backbone.placement = placed(backbone, places)
        backbone.build()
        if tensors is None and options["quantization"] is not None:
            options["quantization"].pack(backbone)
            backbone.settle()
        return backbone

    def _alike(self, tensors, kernel):
        """`dtype` and `quantization` of a network whose blocks are all alike."""
        stored = None if tensors is None else str(np.dtype(stored_dtype(tensors)))
        dtype, quantization = _policy(self.dtype, stored), self.quantization
        if quantization == AUTO:
            quantization = KEEP if stored == "bfloat16" and _serves_halves(dtype, kernel) else None
            if quantization == KEEP and keras.dtype_policies.get(dtype).compute_dtype == "float32":
                _say_halves()
        if (
            self.quantization is None
            and stored in ("bfloat16", "float16")
            and self.dtype is None
            and dtype == "float32"
        ):
            _say_float32(stored)
        return {"dtype": dtype, "quantization": quantization}

    def _places(self, config, tensors):
        """The `Place` of each block and of the head, if there is room for what is known of the weights."""
        if tensors is not None:
            plan = plan_for(self.strategy, config, tensors)
            plan.check()
            return plan.places
        if self.strategy.is_auto:
            raise ValueError("strategy='auto' goes by the weights of a file, and these are random: write one out.")
        return self.strategy.places(config.num_hidden_layers)


def load_weights(backbone, tensors, progress=None):
    """Fill a built backbone from a mapping of official names, all or nothing (see `weights.loading.assign`)."""
    rules = backbone.config.rules()
    if any(name.endswith(".att.time_state") for name in tensors):
        logger.warning(
            "The file holds a tuned initial state too. It is not used by itself: `RWKV.load_state(file)` gives it, to "
            "pass as `state`, or to `set_tuned_state` after `enable_state_tuning`."
        )
    variables = {rule.path: backbone.variable_at(rule.path) for rule in filled(rules)}
    if backbone.placement is None:
        assign(rules, tensors, variables, progress, adopt)
        return
    there = {path: backbone.placement.target(path, variable) for path, variable in variables.items()}
    assign(rules, tensors, there, progress)
    backbone.settle()


def functional_model(backbone, sequence_length, with_lm, *, input_state, output_state, packed, prefix, name):
    """The Keras model around a backbone, whose arguments are those of `build_transformer_model`."""
    inputs = [keras.Input((sequence_length,), dtype="int32", name=f"{prefix}Input-Token")]
    wkv, shift = RWKVState.shapes(backbone.config)
    wkv_dtype, dtype = backbone.state_dtypes
    named = {}
    if input_state:
        named["wkv"] = keras.Input(wkv, dtype=wkv_dtype, name=f"{prefix}Stack-States")
        named["shift"] = keras.Input(shift, dtype=dtype, name=f"{prefix}Stack-Last-X")
    if packed:
        named["reset"] = keras.Input((sequence_length,), dtype="int32", name=f"{prefix}Reset")
    output, *state = backbone(inputs[0], **named)
    if with_lm == "softmax":
        output = keras.layers.Activation("softmax", dtype=wkv_dtype, name=f"{prefix}probabilities")(output)
    return keras.Model(
        [*inputs, *named.values()],
        [output, *state] if output_state else output,
        name=f"{prefix}{backbone.config.model}" if name is None else name,
    )


def _config_over(checkpoint, keys):
    """The `RWKVConfig` of a checkpoint with some keys changed."""
    found = checkpoint.config
    if keys.get("model") not in (None, found.model):
        raise ValueError(
            f"`model` is {keys['model']!r}, but '{checkpoint.path}' holds an {found.model!r}. Leave `model` out."
        )
    return RWKVConfig.from_dict({**found.to_dict(), **keys})


def _tokenizer(given, checkpoint, file_size, cut):
    """The tokenizer that was given, as an object or a path, or that is found; renumbered if the vocabulary was cut."""
    if isinstance(given, str | os.PathLike):
        given = load_tokenizer(given)
    if given is None:
        given = find_tokenizer(None, file_size) if checkpoint is None else checkpoint.tokenizer
    return given if cut is None or given is None else given.remapped(cut.keep, [None] * len(cut.compounds))


def _policy(dtype, stored):
    """The dtype policy: an argument, a changed global one, or what suits the device and a file's dtype."""
    if dtype is not None:
        return dtype
    if keras.config.dtype_policy().name != "float32" or keras.config.floatx() != "float32":
        policy = keras.config.dtype_policy()
        return policy if policy.name != "float32" else keras.config.floatx()
    return stored if stored in ("bfloat16", "float16") and has_accelerator() else "float32"


def _serves_halves(dtype, kernel):
    """Whether a model that computes in a dtype is no slower with matrices in bfloat16: native kernels multiply them."""
    compute = keras.dtype_policies.get(dtype).compute_dtype
    return compute in ("float32", "bfloat16") and not has_accelerator() and chosen(kernel, compute) == "native"


@functools.cache
def _say_halves():
    logger.warning(
        "The matrices are bfloat16, and are held so: computed in float32, they lose nothing. They do not train; the "
        "dtype 'float32' holds them in float32."
    )


@functools.cache
def _say_float32(stored):
    logger.warning(
        "The weights are %s; on a CPU they are held and computed in float32, in which they can be trained. "
        "The dtype %r takes half the memory; with quantization='auto' matrices in bfloat16 stay so, which is faster.",
        stored,
        stored,
    )
