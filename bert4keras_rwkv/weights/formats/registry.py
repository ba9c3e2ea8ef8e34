"""The formats we know: one module each, whose `FORMAT` says how to tell, read and write it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from bert4keras_rwkv.weights.binary_file import regular

# In the order in which a file is asked: the first that recognises it reads it.
MODULES = (
    "bert4keras3",
    "keras_hub",
    "keras_h5",
    "pth",
    "sharded",
    "safetensors_file",
    "web_rwkv",
    "hf",
    "fla",
    "llama_cpp.read",
    "rwkv_cpp",
)


@dataclass(frozen=True)
class Format:
    """A format of weights.

    name: what `convert --to` and `--from` take. title: what people call it. versions: of RWKV that it can hold, '4' to
    '7'; writes: those that are written where they are fewer. suffix: of the file that is written; '' for a folder,
    None for a folder that is only written when asked for by name. dtypes: what its tensors can be cast to, and
    `dtype`: what they are cast to unless told otherwise, None for each its own. vocabulary: whether it holds one.
    recognises(path, start): whether a file that begins with the bytes `start` (16 at most), or a folder (start b''),
    is of this format; None: it is told by the names of its tensors, by its `dialect`.
    open(path, config): lazy `Tensors` under official names; config: an RWKVConfig or None. dialects: the names of
    formats whose tensors may come in a file of this one; those are put under official names after `open`.
    dialect: how this format names tensors (`formats.foreign`); None: officially, or `open` translates.
    write(path, tensors, config, dtype=None, tokenizer=None, progress=None): `Tensors` under official names in released
    order to a file or folder, whole or not at all; None: it is only read.
    """

    name: str
    title: str
    versions: tuple
    recognises: Callable | None = None
    open: Callable | None = None
    suffix: str | None = ""
    write: Callable | None = None
    writes: tuple | None = None
    dialects: tuple = ()
    dialect: object = None
    dtypes: tuple = ("float32", "bfloat16", "float16")
    dtype: str | None = None
    vocabulary: bool = False

    @property
    def written(self):
        """The versions it is written for."""
        return () if self.write is None else self.writes or self.versions


@functools.cache
def formats():
    """Every `Format`, in the order in which files are asked."""
    return tuple(import_module(f"{__package__}.{name}").FORMAT for name in MODULES)


def beginning(path):
    """The first 16 bytes of a file; none of a folder."""
    if path.is_dir():
        return b""
    with open(regular(path), "rb") as file:
        return file.read(16)


def format_of(path):
    """The `Format` that a file or folder, a `Path`, is stored in; None for an unknown one."""
    start = beginning(path)
    return next((known for known in formats() if known.recognises and known.recognises(path, start)), None)


def format_named(name, write=True):
    """The `Format` of this name, for writing or for reading. Raises ValueError with those there are."""
    able = {known.name: known for known in formats() if not write or known.write is not None}
    if name not in able:
        raise ValueError(f"No format {name!r} can be {'written' if write else 'read'}. There are: {', '.join(able)}.")
    return able[name]
