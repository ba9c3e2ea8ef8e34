"""Any weight file or preset folder, told by its content, as a lazy mapping official name -> array."""

import logging
from dataclasses import replace
from pathlib import Path

from bert4keras_rwkv.config import RWKVConfig, weights_version
from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.formats.registry import beginning, format_of, formats
from bert4keras_rwkv.weights.preset import CONFIG, config_beside, weights_path

logger = logging.getLogger("bert4keras_rwkv")

FOREIGN = {
    b"GGUF": "a GGUF file of llama.cpp",
    b"ggmf": "a file of rwkv.cpp",
    b"fmgg": "a file of rwkv.cpp",
    b"ggml": "a GGML file",
    b"\x89HDF": "an HDF5 file, but its groups are not those of an RWKV saved here or by bert4keras3",
}


def open_weights(path, config=None):
    """The weights in a file or folder as lazy `Tensors`: official name -> array, with `shapes`, `dtypes`, `metadata`.

    Which of the formats it is, the content says (`formats.registry`). Our own `.weights.h5` needs an `RWKVConfig`:
    `config`, or the `config.json` beside it. Raises `WeightsError` (a `ValueError`) for whatever is no weight file,
    and `FileNotFoundError`. Close it, or use it in a `with`.
    """
    file = weights_path(path)
    known = format_of(file)
    if known is None:
        start = beginning(file)
        foreign = next((what for magic, what in FOREIGN.items() if start.startswith(magic)), "no weight file")
        titles = ", ".join(one.title for one in formats())
        raise WeightsError(f"'{file}' is {foreign}: it begins with {start[:8]!r}. Supported: {titles}.")
    tensors = known.open(file, config)
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
