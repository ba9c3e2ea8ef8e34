"""Any weight file or preset folder, told by its content, as a lazy mapping official name -> array."""

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.tokenizers.find import find_tokenizer
from bert4keras_rwkv.versions import version_of
from bert4keras_rwkv.weights.folder import (
    CONFIG,
    NAMES,
    TEMPLATE,
    config_beside,
    foreign_keys,
    key_beside,
    vocabulary_beside,
    weights_path,
)
from bert4keras_rwkv.weights.formats.registry import Format, beginning, format_named, format_of, formats
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError

logger = logging.getLogger("bert4keras_rwkv")

PRESETS = Path(__file__).parent.parent / "presets"
FOREIGN = {
    b"ggmf": "a file of rwkv.cpp",
    b"fmgg": "a file of rwkv.cpp",
    b"ggml": "a GGML file",
    b"\x89HDF": "an HDF5 file, but its groups are not those of an RWKV saved here or by bert4keras3",
}


class Origin(NamedTuple):
    """Where a model comes from. name: what it is called. template: the form of conversations that its file says it has
    learned, a name. None: nobody says.
    """

    name: str | None = None
    template: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """An opened weight file, and what belongs to it. Close it, or use it in a `with`.

    path: the file of weights; of a folder, the one in it. format: the `Format` whose names its tensors have. tensors:
    lazy `Tensors`, official name -> array.
    """

    path: Path
    format: Format
    tensors: Tensors

    @functools.cached_property
    def config(self):
        """The `RWKVConfig`, from the shapes of the tensors and the epsilons of a `config.json` beside them."""
        return _config_of(self.path, self.tensors)

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer in the file, or beside it, or that of its vocabulary's size; None if there is none."""
        held = self.tensors.metadata.get("vocabulary")  # a text, if somebody put a note of that name into the file
        rows = self.tensors.shapes["emb.weight"][0]
        return find_tokenizer(self.path, rows, held if isinstance(held, dict) else None, vocabulary_beside(self.path))

    @functools.cached_property
    def origin(self):
        """The `Origin`: the name of the file, or of the folder around one that is called as all are."""
        path = self.path.resolve()
        called = path.parent.name if path.name in NAMES else path.stem
        said = self.tensors.metadata.get(TEMPLATE, key_beside(self.path, TEMPLATE) if path.name in NAMES else None)
        return Origin(called, said if isinstance(said, str) else None)

    def close(self):
        self.tensors.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def open_weights(path, config=None, format=None):
    """The weights in a file or folder as lazy `Tensors`: official name -> array, with `shapes`, `dtypes`, `metadata`.

    Which of the formats it is, the content says (`formats.registry`), and the names of the tensors whose they are.
    format: the name of one ('st', 'safetensors', ...), for files that do not say it. Our own `.weights.h5` needs an
    `RWKVConfig`: `config`, or the `config.json` beside it. Raises `WeightsError` (a `ValueError`) for whatever is no
    weight file, and `FileNotFoundError`. Close it, or use it in a `with`.
    """
    return open_checkpoint(path, config, format).tensors


def open_checkpoint(path, config=None, format=None):
    """The `Checkpoint` of a weight file or folder. Arguments and errors as for `open_weights`."""
    try:
        file = weights_path(path)
    except FileNotFoundError as error:
        if str(path) not in shipped():
            raise
        found = f"The model of this name ships with the package: RWKV.from_preset({str(path)!r})."
        raise FileNotFoundError(f"{error} {found}") from None
    known = format_of(file)
    if known is None:
        start = beginning(file)
        foreign = next((what for magic, what in FOREIGN.items() if start.startswith(magic)), "no weight file")
        titles = ", ".join(one.title for one in formats() if one.open is not None)
        raise WeightsError(f"'{file}' is {foreign}: it begins with {start[:8]!r}. Supported: {titles}.")
    wanted = None if format is None else _wanted(format, known, file)
    tensors = known.open(file, config)
    try:
        if "_strategy" in tensors.metadata:
            version_of(tensors.metadata)
        spoken = _spoken(known, tensors) if wanted is None else wanted
        return Checkpoint(file, spoken, tensors if spoken.dialect is None else spoken.dialect.read(tensors))
    except ValueError as error:
        tensors.close()
        raise WeightsError(f"'{file}': {error}") from error


def _spoken(known, tensors):
    """The `Format` whose names the tensors have; that of the file if they are official."""
    shapes = tensors.shapes
    dialects = (format_named(name, write=False) for name in known.dialects)
    return next((one for one in dialects if one.dialect.speaks(shapes)), known)


def _wanted(name, known, file):
    """The `Format` that the user names, if a file of the format `known` can hold it."""
    wanted = format_named(name, write=False)
    holds = name in known.dialects if wanted.dialect is not None else name == known.name or known.name == "sharded"
    if not holds:
        raise WeightsError(
            f"'{file}' is stored as {known.name}, which holds {', '.join((known.name, *known.dialects))}. "
            f"Received: format={name!r}."
        )
    return wanted


def named(name):
    """The path of a model by its name: a file or folder as it is, else a model that ships with the package."""
    path = Path(name)
    if name != "" and path.exists():
        return path
    if str(name) in shipped():
        return PRESETS / str(name)
    try:
        return weights_path(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Models that ship with the package: {', '.join(shipped())}.") from None


def shipped():
    """The names of the models that ship with the package."""
    return sorted(file.parent.name for file in PRESETS.glob(f"*/{CONFIG}"))


def _config_of(path, tensors):
    """The `RWKVConfig` of opened weights, from their shapes, with the epsilons of a `config.json` beside them.

    The shapes are always right; a `config.json` that says other sizes belongs to something else and is left alone.
    """
    config = RWKVConfig.from_shapes(tensors.shapes)
    foreign = foreign_keys(path)
    if foreign is not None:
        return _with_foreign(config, foreign, path)
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


def _with_foreign(config, keys, path):
    """The config with what a `config.json` for `transformers` says of epsilons.

    Hugging Face's rwkv5 and rwkv6 say the group norm's by `head_size_divisor`. fla's `norm_eps` is not believed: nearly
    all models there are converted ones, made for 64e-5, whose `config.json` could not say so.
    """
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers")
    if any(keys.get(name) not in (None, getattr(config, name)) for name in sizes):
        logger.warning("Not used: the '%s' beside '%s' says other sizes than its weights.", CONFIG, path)
        return config
    divisor, layer = keys.get("head_size_divisor"), keys.get("layer_norm_epsilon")
    try:
        said = {} if divisor is None else {"group_norm_epsilon": 1e-5 * divisor**2}
        return replace(config, **said, **({} if layer is None else {"layer_norm_epsilon": layer}))
    except (TypeError, ValueError, OverflowError) as error:
        logger.warning("Not used: the '%s' beside '%s': %s", CONFIG, path, error)
        return config
