"""What formats of other projects have in common: how one names and lays out tensors, and what its folders hold."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bert4keras_rwkv.atomic import atomic_folder
from bert4keras_rwkv.tokenizers import VOCABULARY_NAME
from bert4keras_rwkv.versions.table import Transform
from bert4keras_rwkv.weights.casting import is_floating
from bert4keras_rwkv.weights.folder import CONFIG, SAFETENSORS, VOCABULARY
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors
from bert4keras_rwkv.weights.tensors import derived

logger = logging.getLogger("bert4keras_rwkv")


@dataclass(frozen=True)
class Dialect:
    """How a project names and lays out the tensors of a model.

    speaks(shapes): whether tensors with these names (without 'model.' and the like) and shapes are in it.
    read(tensors): such `Tensors` under official names. write(tensors, config): official `Tensors` in this dialect.
    All lazy; `read` undoes `write` exactly. A model that a dialect cannot express is a `WeightsError`.
    """

    speaks: Callable
    read: Callable
    write: Callable


# The last two axes change places, [in, out] to [out, in], of a stack of matrices too.
TURNED = Transform(load=lambda array: np.swapaxes(array, -1, -2), save=lambda array: np.swapaxes(array, -1, -2))


def without_state(tensors, reason):
    """Name -> `Tensor` without a merged initial state, if there is one; the warning says who cannot hold it."""
    left = [name for name in tensors if name.endswith(".time_state")]
    if left:
        logger.warning("Left out: the initial state merged into these weights ('%s', ...), which %s.", left[0], reason)
    return {name: tensors.entry(name) for name in tensors if name not in left}


def layers_of(names, prefix):
    """How many layers there are in names like '`prefix`3.attn.k_proj.weight'."""
    numbers = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    return len([number for number in numbers if number.isdigit()])


def for_each_channel(entries, head_size):
    """RWKV-5.1, whose heads have one decay and one bonus each, as a 5.2 with equal ones for every channel of a head:
    official name -> `Tensor`. The bonus becomes `time_faaaa`, which is used as it is.
    """

    def spread(array):
        return np.repeat(array.reshape(-1, 1), head_size, axis=1)

    result = {}
    for name, entry in entries.items():
        if name.endswith(".time_first"):
            name, entry = name.replace(".time_first", ".time_faaaa"), entry.changed(_exponential, entry.dtype)
        changes = name.endswith((".time_decay", ".time_faaaa"))
        result[name] = derived(spread, entry) if changes else entry
    return result


def _exponential(array):
    """e to the power of each number, in its own dtype, computed in float64."""
    return np.exp(array.astype(np.float64)).astype(array.dtype)


GENERATION = "generation_config.json"
WORLD_NAME = (
    "rwkv_vocab_v20230424.txt"  # what their tokenizers call the World vocabulary; `vocab.txt` is another format
)


def write_folder(folder, tensors, config, dtype=None, tokenizer=None, progress=None, texts=None):
    """Write `tensors`, under the project's names, and its config (a dict) to a folder. texts: more files, name -> text.

    The end of a document, id 0, ends what they generate.
    """
    said = {**config, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": str(dtype or _dtype(tensors))}
    if tokenizer is not None and tokenizer.file_name is not None:
        said[VOCABULARY] = WORLD_NAME if tokenizer.file_name == VOCABULARY_NAME else tokenizer.file_name
    files = {CONFIG: _json(said), GENERATION: _json({"bos_token_id": 0, "eos_token_id": 0}), **(texts or {})}
    with atomic_folder(folder) as unfinished:
        write_safetensors(unfinished / SAFETENSORS, tensors, dtype, progress=progress)
        for name, text in files.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        if VOCABULARY in said:
            tokenizer.save(unfinished / said[VOCABULARY])


def _dtype(tensors):
    """The floating dtype that most numbers have."""
    sizes = {}
    for entry in tensors.entries().values():
        if is_floating(entry.dtype):
            sizes[str(entry.dtype)] = sizes.get(str(entry.dtype), 0) + entry.nbytes
    return max(sizes, key=sizes.get, default="float32")


def _json(keys):
    return json.dumps(keys, indent=2, sort_keys=True) + "\n"
