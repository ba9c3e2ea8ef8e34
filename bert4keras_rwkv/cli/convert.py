"""`convert`: weights into another format, tensor by tensor."""

import json
import os
from pathlib import Path

from tqdm import tqdm

from bert4keras_rwkv.tokenizers import VOCABULARY_NAME, find_tokenizer
from bert4keras_rwkv.weights.files import CONFIG, WEIGHTS, config_of, named, open_weights
from bert4keras_rwkv.weights.rules import in_order, rules_of
from bert4keras_rwkv.weights.whole import whole_file, whole_folder
from bert4keras_rwkv.weights.write import cast, write_keras_h5, write_pth, write_safetensors

FILES = {".pth": write_pth, ".safetensors": write_safetensors}


def run(arguments):
    """Read SRC and write DST; what DST is, its name says."""
    os.environ.setdefault(
        "KERAS_BACKEND", "numpy"
    )  # the table of a version lies beside its layers; nothing is computed
    source, target = named(arguments.source), Path(arguments.target)
    if target.suffix in (".h5", ".keras", ".bin", ".gguf", ".json"):
        raise ValueError(f"Cannot write '{target}'. DST is NAME.pth, NAME.safetensors, or a folder for a preset.")
    with open_weights(source) as tensors:
        config = config_of(source, tensors)
        ordered = in_order(rules_of(config.model), tensors, config.num_hidden_layers)
        with _Bar(target.name) as progress:
            if target.suffix in FILES:
                FILES[target.suffix](target, ordered, dtype=arguments.dtype, progress=progress)
            else:
                write_preset(
                    target, cast(ordered, arguments.dtype), config, find_tokenizer(source, config.vocab_size), progress
                )
    print(f"Wrote {target}")


def write_preset(folder, tensors, config, tokenizer, progress=None):
    """A preset folder: config.json, model.weights.h5 and, if there is one, the vocabulary."""
    with whole_folder(folder) as unfinished:
        write_keras_h5(
            unfinished / WEIGHTS, tensors, rules_of(config.model), config.num_hidden_layers, progress=progress
        )
        keys = {**config.to_dict(), "dtype": str(tensors.dtypes["head.weight"])}
        with whole_file(unfinished / CONFIG) as file:
            file.write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(unfinished / VOCABULARY_NAME)


class _Bar:
    """A progress bar on stderr when it is a terminal; called with (done, total)."""

    def __init__(self, label):
        self._bar = tqdm(desc=label, unit="tensor", disable=None, leave=False)

    def __call__(self, done, total):
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
