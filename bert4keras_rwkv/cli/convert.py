"""`convert`: weights into another format, tensor by tensor; with `--check`, a comparison of the two files after it."""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import check_file, check_folder
from bert4keras_rwkv.cli.arguments import UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.tokenizers.find import vocabulary_files
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.weights.adapters import ALPHA, read_adapter
from bert4keras_rwkv.weights.checkpoint import named, open_checkpoint, open_weights
from bert4keras_rwkv.weights.folder import NAMES, SAFETENSORS, TEMPLATE, WEIGHTS
from bert4keras_rwkv.weights.formats.registry import format_named, formats
from bert4keras_rwkv.weights.loading import in_order
from bert4keras_rwkv.weights.merging import merged, unused_names
from bert4keras_rwkv.weights.packed import title

TOKENS = 64  # that `--check` reads; random ones go through every channel
SEED = 7
SPREAD = 1.5  # standard deviation of the logits for which the bars of `BARS` are given

# The largest difference of a logit that rounding the weights explains. For float32 relative to the largest logit:
# orders of summation differ by 1e-5, and ten times that is a mistake. The others are for logits of standard deviation
# 1.5. Implementations of the reference models that round weights and activations stay within 0.011 (float16), 0.075
# (bfloat16) and 0.064 (int8). Blocks of 5 and 4 bits have steps 8 and 16 times as wide as those of 8; on the reference
# models, whose normally distributed weights suit them badly, they were within 0.63 and 1.27.
BARS = {
    "float32": 1e-4,
    "float16": 0.01,
    "bfloat16": 0.08,
    "q8_0": 0.15,
    **dict.fromkeys(("q5_1", "q5_0"), 0.9),
    **dict.fromkeys(("q4_1", "q4_0"), 1.8),
}
# The share of positions that must be below the bar. A few random tokens lead to a normalisation of almost nothing,
# which enlarges any rounding: in bfloat16 the shipped model is off by 0.12 at one position of 64 and by 0.02 elsewhere.
SHARE = 0.9


def run(arguments):
    """Read SRC and write DST; what DST is, `--to` or its name says."""
    if arguments.check:  # before anything is written; it computes little
        choose_engine(default="numpy")
    source, target = named(arguments.source), Path(arguments.target)
    written = _format(target, arguments.to, arguments.dtype)
    merge = _merge(arguments)
    with open_checkpoint(source, format=arguments.format) as checkpoint:
        config, tokenizer, template = checkpoint.config, checkpoint.tokenizer, checkpoint.origin.template
        ordered = in_order(config.rules(), merge(checkpoint.tensors, config))
        rounded = {title(entry.packed.scheme) for entry in ordered.entries().values() if entry.packed is not None}
        if template is not None:
            ordered.metadata[TEMPLATE] = template
        with Bar(target.name, "tensor") as progress:
            written.write(target, ordered, config, arguments.dtype, tokenizer, progress)
    print(f"Wrote {target}")
    if rounded and not (written.name == "preset" and arguments.dtype is None):
        said = ", ".join(sorted(rounded))
        print(f"{source} is quantised ({said}): {target} has its rounded numbers, unpacked.", file=sys.stderr)
    with open_checkpoint(target, config, written.name) as checkpoint:
        _say_epsilons(target, config, checkpoint.config)
        _say_vocabulary(source, target, written, tokenizer, checkpoint)
        if template not in (None, checkpoint.origin.template):
            print(f"{target} cannot say that its template is {shown(template)}: name it for a chat.", file=sys.stderr)
    if arguments.check:
        _check((source, arguments.format), (target, written.name), config, arguments.dtype, merge)


def _merge(arguments):
    """A function of `Tensors` and their config that merges the adapter of `--lora`, if there is one."""
    if arguments.lora is None:
        if arguments.lora_base is not None:
            raise UsageError("`--lora-base` belongs to the PiSSA that `--lora` names.")
        if arguments.alpha is not None:
            raise UsageError("`--alpha` belongs to the LoRA that `--lora` names.")
        return lambda tensors, config: tensors
    adapter = read_adapter(arguments.lora)
    base = None if arguments.lora_base is None else read_adapter(arguments.lora_base)
    alpha = ALPHA if arguments.alpha is None else arguments.alpha
    return lambda tensors, config: merged(tensors, adapter, alpha, base, unused_names(config.rules()))


def _format(target, name, dtype):
    """The format that DST is written in: by name, by its suffix, or without one a preset folder."""
    suffixes = {known.suffix: known for known in reversed(formats()) if known.written and known.suffix is not None}
    if name is not None:
        found = format_named(name)
    elif target.suffix in suffixes:
        found = suffixes[target.suffix]
    else:
        names = ", ".join(f"NAME{suffix}" for suffix in suffixes if suffix)
        folders = ", ".join(known.name for known in formats() if known.written and not known.suffix)
        raise ValueError(f"Cannot write '{target}'. DST is {names}, or a folder for a preset; or --to {folders}.")
    if dtype not in (None, *found.dtypes):
        dtypes = ", ".join(found.dtypes)
        more = "; `llama-quantize` of llama.cpp makes others of a file in float16" if found.name == "gguf" else ""
        raise ValueError(f"{found.name} ({found.title}) has the dtypes {dtypes}{more}. Received: --dtype {dtype}.")
    (check_file if found.suffix else check_folder)(target)
    own = WEIGHTS if found.name == "preset" else SAFETENSORS
    others = [name for name in NAMES if name != own and not found.suffix and (target / name).is_file()]
    if others:  # which of the two the folder means would be anybody's guess
        raise ValueError(f"'{target}' holds other weights, '{others[0]}'. Give another name for DST.")
    return found


@dataclass(frozen=True)
class Comparison:
    """How far the logits of two files are apart.

    difference: the largest; usual: what it is at most at a `SHARE` of the positions, and bar: how large that may be;
    agreement: the share of positions with the same likeliest token.
    """

    difference: float
    usual: float
    bar: float
    agreement: float

    @property
    def passed(self):
        """False for NaN, too."""
        return self.usual <= self.bar

    def __str__(self):
        return (
            f"largest difference of a logit {self.difference:.3g}, at most {self.usual:.3g} at the positions that "
            f"count (allowed: {self.bar:.3g}), the same likeliest token at {self.agreement:.1%} of {TOKENS}"
        )


def compared(before, after, kind):
    """The `Comparison` of logits (1, T, V). kind: a key of `BARS`; for float32 every position counts."""
    scale = np.abs(before).max() if kind == "float32" else before.std() / SPREAD
    largest = np.abs(before - after).max(-1)  # (1, T)
    usual = largest.max() if kind == "float32" else np.quantile(largest, SHARE)
    agreement = np.mean(before.argmax(-1) == after.argmax(-1))
    return Comparison(float(largest.max()), float(usual), float(BARS[kind] * scale), float(agreement))


def _check(source, target, config, dtype, merge):
    """Run both files, one after the other, on random tokens. Logits that are too far apart are a `ValueError`.

    source, target: path and format. config: whose epsilons, which most formats cannot hold, both are run with. merge:
    what is done to the tensors of the source.
    """
    before, _ = _logits(*source, config, merge)
    after, dtypes = _logits(*target, config)
    kind = dtype if dtype in BARS else _coarsest(dtypes)
    result = compared(before, after, kind)
    if not result.passed:
        raise ValueError(f"'{target[0]}' was written, but does not compute what '{source[0]}' does: {result}.")
    print(f"Checked as {kind}: {result}")


def _logits(path, format, config, merge=lambda tensors, config: tensors):
    """Logits (1, T, V) of random tokens, and the dtypes of the weights."""
    from bert4keras_rwkv.models.blockwise import logits_from_file

    tensors = open_weights(path, config, format)
    with tensors, Bar(f"checking {Path(path).name}", "block") as progress:
        config = replace(RWKVConfig.from_shapes(tensors.shapes), **_epsilons(config))
        ids = np.random.default_rng(SEED).integers(0, config.vocab_size, (1, TOKENS))
        return logits_from_file(merge(tensors, config), config, ids, progress), set(map(str, tensors.dtypes.values()))


def _say_epsilons(target, config, read):
    """Say so if DST, whose config is `read`, would be computed with other epsilons than those of `config`."""
    read = _epsilons(read)
    lost = {name: value for name, value in _epsilons(config).items() if not math.isclose(value, read[name])}
    if lost:
        said = ", ".join(f"{name}={value:g}" for name, value in lost.items())
        print(f"{target} cannot say {said}: build the model with it.", file=sys.stderr)


def _say_vocabulary(source, target, written, tokenizer, checkpoint):
    """Say so if DST, opened as `checkpoint`, is read with another vocabulary than SRC, or with none."""
    lying = [path.name for path in vocabulary_files(target, checkpoint.config.vocab_size)]
    said = None
    if tokenizer is None and written.vocabulary:
        kept = f"is read with the {lying[0]} that lies there, which must be this model's" if lying else ""
        said = f"No tokenizer was found for {source}: {target} {kept or 'is written without one'}."
    elif tokenizer is not None and checkpoint.tokenizer is None:
        said = f"{target} holds no vocabulary. Put that of {source} beside it, or convert to a folder."
    elif tokenizer is not None and not tokenizer.same_as(checkpoint.tokenizer):
        read = f"the {lying[0]} that lies there" if lying else "the World vocabulary"
        said = f"{target} is read with {read}, which is not the vocabulary of {source}. Put that in its place."
    if said is not None:
        print(said, file=sys.stderr)


def _epsilons(config):
    return {name: getattr(config, name) for name in ("group_norm_epsilon", "layer_norm_epsilon")}


def _coarsest(dtypes):
    """The key of `BARS` for weights of these dtypes."""
    return next((kind for kind in ("bfloat16", "float16") if kind in dtypes), "float32")
