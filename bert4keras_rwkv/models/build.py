"""From a configuration and a weight file to a model."""

import functools
import logging
import os
from dataclasses import replace

import numpy as np

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.models.backbone import Backbone
from bert4keras_rwkv.models.rwkv import RWKV
from bert4keras_rwkv.ops.backend import adopt, has_accelerator
from bert4keras_rwkv.ops.kernels.choose import check_kernel
from bert4keras_rwkv.tokenizers.find import find_tokenizer, load_tokenizer
from bert4keras_rwkv.versions import version_named
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.checkpoint import config_of, open_weights
from bert4keras_rwkv.weights.loading import assign
from bert4keras_rwkv.weights.surgery import surgery

LANGUAGE_MODELS = ("linear", "softmax", True, False)

logger = logging.getLogger("bert4keras_rwkv")


def build_transformer_model(
    config_path=None,
    checkpoint_path=None,
    model=None,
    keras_weights_path=None,
    return_keras_model=False,
    sequence_length=None,
    with_lm="linear",
    dtype=None,
    tokenizer=None,
    pad_token_id=0,
    group_norm_epsilon=None,
    rescale_layer=None,
    kernel="auto",
    input_state=False,
    output_state=False,
    packed=False,
    remat=False,
    keep_tokens=None,
    compound_tokens=None,
    mask_output=None,
    penalty=1.0,
    penalty_window=None,
    max_penalty_range=None,
    temperature=1.0,
    prefix="",
    name=None,
    **config_keys,
):
    """Build a model, with the weights of a file or as its authors start training.

    config_path: a JSON file with bert4keras or Hugging Face keys. checkpoint_path: a weight file or preset folder of
    any known format; version and sizes are read from it. keras_weights_path: the same, in bert4keras's name. Without
    either the weights are random. model: 'rwkv6'; needed only where nothing else says it. config_keys: keys of
    RWKVConfig, over what the files say.

    return_keras_model: return the Keras model instead of the `RWKV` around it. sequence_length: fixed T of the Keras
    model, None for any. with_lm: what it gives: 'linear' logits, 'softmax' (or True) probabilities, False hidden
    states. input_state, output_state: it takes and gives `Stack-States` and `Stack-Last-X` too. packed: it takes
    `Reset` (B, T), 1 where a document begins, and masks nothing. pad_token_id: the id it masks, None for none.

    dtype: a dtype or Keras policy. None: `keras.config.floatx()` where it was changed; else on a CPU float32, on an
    accelerator the file's own. tokenizer: one of `tokenizers`, or the path of a vocabulary; None looks beside the
    weights. kernel: 'auto', 'ops' or 'loop'. remat: recompute blocks in the backward pass. group_norm_epsilon: 64e-5
    unless a config says otherwise. rescale_layer: halve the residual stream after every so many blocks, so that
    float16 does not overflow; logits are what they were; 0 is off; None: 6 for float16, else 0.

    keep_tokens: ids of the file's vocabulary to keep, in their new order. compound_tokens: rows to append, each the
    mean of those of a list of ids, or the weighted mean of (ids, weights); the ids are the file's. The tokenizer, the
    file's too, is renumbered with them; where new rows have texts, set `RWKV.tokenizer = old.remapped(keep, texts)`.
    mask_output, penalty, penalty_window, max_penalty_range, temperature: how `generate` and `build_cache_model`
    sample.

    prefix: what the names of the inputs and layers of the Keras model begin with, so that two models fit into one.
    name: its own name, None for the version.
    """
    if with_lm not in LANGUAGE_MODELS:
        raise ValueError(f"`with_lm` is 'linear', 'softmax' (or True) or False. Received: with_lm={with_lm!r}.")
    with_lm = {True: "softmax", False: False}.get(with_lm, with_lm)
    if checkpoint_path is not None and keras_weights_path is not None:
        raise ValueError("Give `checkpoint_path` or `keras_weights_path`, not both: each names a weight file.")
    if model is not None:
        version_named(model)
    check_kernel(kernel)
    sampling = Sampling(
        temperature=temperature,
        top_p=0.85,
        penalty=penalty,
        penalty_window=penalty_window,
        max_penalty_range=max_penalty_range,
        mask_output=() if mask_output is None else mask_output,
    )
    weights_path = keras_weights_path if checkpoint_path is None else checkpoint_path
    if weights_path is None and (keep_tokens is not None or compound_tokens):
        raise ValueError(
            "`keep_tokens` and `compound_tokens` choose rows of a file's vocabulary. Give `checkpoint_path` too, or "
            "`vocab_size` for random weights."
        )
    keys = _keys(config_path, model, {**config_keys, "group_norm_epsilon": group_norm_epsilon})
    tensors = None if weights_path is None else open_weights(weights_path, _config_for(weights_path, keys, config_path))
    try:
        config = RWKVConfig.from_dict(keys) if tensors is None else _config(weights_path, tensors, keys, config_path)
        if model not in (None, config.model):
            raise ValueError(f"`model` is {model!r}, but {weights_path} holds {config.model!r}. Leave `model` out.")
        file_size = config.vocab_size
        cut = surgery(keep_tokens, compound_tokens, file_size)
        if cut is not None:
            config = replace(config, vocab_size=cut.size)
        backbone = Backbone(
            config,
            kernel=kernel,
            pad_token_id=None if packed else pad_token_id,
            head=with_lm is not False,
            remat=remat,
            rescale_layer=rescale_layer,
            blank=tensors is not None,
            dtype=_policy(dtype, tensors),
            name=f"{prefix}backbone",
        )
        backbone.build()
        if tensors is not None:
            load_weights(backbone, tensors if cut is None else cut.applied(tensors, file_size))
    finally:
        if tensors is not None:
            tensors.close()
    held = None if tensors is None else tensors.metadata.get("vocabulary")
    tokenizer = _tokenizer(tokenizer, weights_path, file_size, cut, held)
    rwkv = RWKV(
        backbone, tokenizer, sampling, sequence_length, with_lm, input_state, output_state, packed, prefix, name
    )
    return rwkv.model if return_keras_model else rwkv


def load_weights(backbone, tensors, progress=None):
    """Fill a built backbone from a mapping of official names, all or nothing (see `weights.loading.assign`)."""
    rules = backbone.config.rules()
    if any(name.endswith(".att.time_state") for name in tensors):
        logger.warning(
            "The file holds a tuned initial state too. It is not used by itself: `RWKV.load_state(file)` gives it, to "
            "pass as `state`, or to `set_tuned_state` after `enable_state_tuning`."
        )
    variables = {rule.path: backbone.variable_at(rule.path) for rule in filled(rules)}
    assign(rules, tensors, variables, progress, adopt)


def _tokenizer(given, weights_path, file_size, cut, held=None):
    """The tokenizer that was given, as an object or a path, or that is found; renumbered if the vocabulary was cut."""
    if isinstance(given, str | os.PathLike):
        given = load_tokenizer(given)
    tokenizer = find_tokenizer(weights_path, file_size, held) if given is None else given
    return tokenizer if cut is None or tokenizer is None else tokenizer.remapped(cut.keep, [None] * len(cut.compounds))


def _keys(config_path, model, given):
    """Config keys from a JSON file and from keywords, the latter first."""
    keys = {} if config_path is None else RWKVConfig.from_json(config_path).to_dict()
    if model is not None:
        keys["model"] = model
    return {**keys, **{name: value for name, value in given.items() if value is not None}}


def _config_for(path, keys, config_path):
    """The config that a file without sizes of its own needs, if one was given."""
    return RWKVConfig.from_dict(keys) if config_path is not None else None


def _config(path, tensors, keys, config_path):
    """The config of opened weights: what was given wins, so that a file that does not fit it is refused."""
    if config_path is not None:
        return RWKVConfig.from_dict(keys)
    return RWKVConfig.from_dict({**config_of(path, tensors).to_dict(), **keys})


def _policy(dtype, tensors):
    """The dtype policy: an argument, a changed global one, or what suits the file and the device."""
    if dtype is not None:
        return dtype
    if keras.config.dtype_policy().name != "float32" or keras.config.floatx() != "float32":
        policy = keras.config.dtype_policy()
        return policy if policy.name != "float32" else keras.config.floatx()
    stored = None if tensors is None else str(np.dtype(tensors.dtypes["head.weight"]))
    if stored not in ("bfloat16", "float16"):
        return "float32"
    if has_accelerator():
        return stored
    _say_float32(stored)
    return "float32"


@functools.cache
def _say_float32(stored):
    logger.warning(
        "The weights are %s; on a CPU they are computed in float32, which is many times faster. "
        "Pass dtype=%r to keep theirs.",
        stored,
        stored,
    )
