"""Any weight file or preset folder, told by its content, as a lazy mapping official name -> array."""

import logging
from dataclasses import replace
from pathlib import Path

from bert4keras_rwkv.config import RWKVConfig, weights_version
from bert4keras_rwkv.weights import bert4keras3, hdf5, keras_h5
from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.pth import open_pth
from bert4keras_rwkv.weights.safetensors_file import open_safetensors

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"  # the names inside a preset folder

logger = logging.getLogger("bert4keras_rwkv")

FOREIGN = {
    b"GGUF": "a GGUF file of llama.cpp",
    b"ggmf": "a file of rwkv.cpp",
    b"fmgg": "a file of rwkv.cpp",
    b"ggml": "a GGML file",
}


def open_weights(path, config=None):
    """The weights in a file or preset folder as lazy `Tensors`: official name -> array, with `shapes`, `dtypes`,
    `metadata`.

    `.pth`, `.safetensors`, our `.weights.h5`, and the `.weights.h5` that bert4keras3 saved for its RWKV-6; which one
    it is, the content says. Our own `.weights.h5` needs an `RWKVConfig`: `config`, or the `config.json` beside it.
    Raises `WeightsError` (a `ValueError`) for whatever is no weight file, and `FileNotFoundError`. Close it, or use
    it in a `with`.
    """
    file = weights_path(path)
    with open(file, "rb") as opened:
        start = opened.read(16)
    if start.startswith(hdf5.MAGIC):
        tensors = _open_h5(file, config)
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        tensors = open_pth(file)
    elif start[8:9] == b"{":
        tensors = open_safetensors(file)
    else:
        foreign = next((what for magic, what in FOREIGN.items() if start.startswith(magic)), "no weight file")
        raise WeightsError(
            f"'{file}' is {foreign}: it begins with {start[:8]!r}. "
            "Supported: .pth, .safetensors, .weights.h5, a preset folder."
        )
    if "_strategy" in tensors.metadata:
        tensors.close()
        weights_version(tensors.metadata)
    return tensors


def named(name):
    """The path of a model by its name: a file or folder as it is, else a model that ships with the package."""
    path = Path(name)
    if path.exists():
        return path
    presets = Path(__file__).parent.parent / "presets"
    shipped = sorted(file.parent.name for file in presets.glob(f"*/{CONFIG}"))
    if str(name) in shipped:
        return presets / str(name)
    raise FileNotFoundError(f"No file or folder '{name}'. Models that ship with the package: {shipped or 'none'}.")


def weights_path(path):
    """The weight file that `path` means: itself, or the one file of weights in a folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    found = sorted(file for pattern in ("*.weights.h5", "*.safetensors", "*.pth") for file in path.glob(pattern))
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"'{file.name}'" for file in found) or "none"
    raise WeightsError(f"A folder should hold '{WEIGHTS}' or one weight file. In '{path}' there are: {names}.")


def config_beside(path):
    """The `RWKVConfig` in the `config.json` of a folder, or beside a file; None if there is none."""
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / CONFIG
    return RWKVConfig.from_json(file) if file.is_file() else None


def config_of(path, tensors):
    """The `RWKVConfig` of opened weights, from their shapes, with the epsilons of a `config.json` beside them.

    The shapes are always right; a `config.json` that says other sizes belongs to something else and is left alone.
    """
    config = RWKVConfig.from_shapes(tensors.shapes)
    try:
        beside = config_beside(path)
    except ValueError as error:
        logger.warning("Not used: %s", error)
        return config
    if beside is None:
        return config
    epsilons = {name: getattr(beside, name) for name in ("group_norm_epsilon", "layer_norm_epsilon")}
    if replace(config, **epsilons) != beside:
        logger.warning("Not used: the '%s' beside '%s' says other sizes than its weights.", CONFIG, path)
        return config
    return beside


def _open_h5(path, config):
    """Either kind of `.weights.h5`."""
    with hdf5.open_hdf5(path) as file:
        foreign, ours = bert4keras3.is_bert4keras3(file), keras_h5.ROOT in file
    if foreign:
        return bert4keras3.open_bert4keras3(path)
    if not ours:
        raise WeightsError(
            f"'{path}' is an HDF5 file, but its groups are not those of an RWKV saved here or by bert4keras3."
        )
    config = config or config_beside(path)
    if config is None:
        raise WeightsError(f"'{path}' needs the model's sizes. Put its '{CONFIG}' beside it, or give the config.")
    return keras_h5.open_keras_h5(path, config)
