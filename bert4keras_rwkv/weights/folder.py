"""What lies in a folder of weights, and under which names."""

import os
from glob import escape
from pathlib import Path

from bert4keras_rwkv.config import LARGEST_FILE, RWKVConfig
from bert4keras_rwkv.untrusted import parse_json
from bert4keras_rwkv.weights.tensors import WeightsError

CONFIG = "config.json"
VOCABULARY = "vocabulary"  # its key for the file that was written with it: an older one may lie in the same folder
TEMPLATE = "template"  # its key for the form of conversations that the model has learned, and that of a file's metadata
WEIGHTS = "model.weights.h5"
SHARDED_WEIGHTS = "model.weights.json"  # the index of Keras' shards
SAFETENSORS = "model.safetensors"
# What the weights of a folder are called, those first that are taken first: ours, then as `transformers` does it.
NAMES = (
    WEIGHTS,
    SHARDED_WEIGHTS,
    SAFETENSORS,
    f"{SAFETENSORS}.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PATTERNS = ("*.weights.h5", "*.weights.json", "*.safetensors", "*.index.json", "*.pth", "*.st", "*.gguf", "*.bin")


def weights_path(path):
    """The weight file that `path` means: itself, or of a folder the one file of weights, or the index of its shards.

    Raises:
        FileNotFoundError: nothing is there; it names what has the same name with an ending.
        WeightsError: a folder without weights, or with several that none of the usual names has; an empty name.
    """
    if os.fspath(path) == "":  # as of a variable that is not set; to `Path` it is the working directory
        raise WeightsError("A model is the name of a file or folder. Received: ''. Use '.' for the working directory.")
    path = Path(path)
    if not path.exists():
        beside = sorted(path.parent.glob(f"{escape(path.name)}.*"))
        meant = f" There is '{beside[0]}'." if beside else ""
        raise FileNotFoundError(f"No file or folder '{path}'.{meant}")
    if not path.is_dir():
        return path
    known = next((path / name for name in NAMES if (path / name).is_file()), None)
    if known is not None:
        return known
    found = sorted({file for pattern in PATTERNS for file in path.glob(pattern)})
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"'{file.name}'" for file in found) or "none"
    raise WeightsError(f"A folder should hold '{WEIGHTS}' or one weight file. In '{path}' there are: {names}.")


def config_beside(path):
    """The `RWKVConfig` in the `config.json` of a folder, or beside a file; None if there is none."""
    file = _config_file(path)
    try:
        return RWKVConfig.from_json(file) if file.is_file() else None
    except ValueError as error:
        raise WeightsError(str(error)) from error


def foreign_keys(path):
    """The keys of a `config.json` there that another project wrote, for `transformers`; None for ours or none."""
    keys = _keys(path)
    foreign = "model" not in keys and {"model_type", "architectures"} & set(keys)
    return keys if foreign else None


def vocabulary_beside(path):
    """The vocabulary that a `config.json` there names, as those that are written here do; None if none is there."""
    name = key_beside(path, VOCABULARY)
    file = _config_file(path).with_name(name) if isinstance(name, str) and name == Path(name).name != "" else None
    return file if file is not None and file.is_file() else None


def key_beside(path, name):
    """What a `config.json` there says under a name; None if nothing."""
    return _keys(path).get(name)


def _keys(path):
    """What a `config.json` there says, a dict; nothing if it cannot be read."""
    file = _config_file(path)
    if not file.is_file() or file.stat().st_size > LARGEST_FILE:
        return {}
    try:
        keys = parse_json(file.read_bytes(), f"'{file}'")
    except ValueError:
        return {}
    return keys if isinstance(keys, dict) else {}


def _config_file(path):
    path = Path(path)
    return (path if path.is_dir() else path.parent) / CONFIG
