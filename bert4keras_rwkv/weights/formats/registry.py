"""The formats we know: one module each, whose `FORMAT` says how to tell, read and write it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

# In the order in which a file is asked: the first that recognises it reads it.
MODULES = ("bert4keras3", "keras_h5", "pth", "safetensors_file")


@dataclass(frozen=True)
class Format:
    """A format of weights.

    name: what `convert --to` takes. title: what people call it. versions: of RWKV, '4' to '7'. suffix: of the file
    that is written, '' for a folder.
    recognises(path, start): whether a file that begins with the bytes `start` (16 at most), or a folder (start b''),
    is of this format. open(path, config): lazy `Tensors` under official names; config: an RWKVConfig or None.
    write(path, tensors, config, dtype=None, tokenizer=None, progress=None): `Tensors` under official names in released
    order to a file or folder, whole or not at all; None: it is only read.
    """

    name: str
    title: str
    versions: tuple
    recognises: Callable
    open: Callable
    suffix: str = ""
    write: Callable | None = None


@functools.cache
def formats():
    """Every `Format`, in the order in which files are asked."""
    return tuple(import_module(f"{__package__}.{name}").FORMAT for name in MODULES)


def beginning(path):
    """The first 16 bytes of a file; none of a folder."""
    if path.is_dir():
        return b""
    with open(path, "rb") as file:
        return file.read(16)


def format_of(path):
    """The `Format` of a file or folder, a `Path`; None for an unknown one."""
    start = beginning(path)
    return next((known for known in formats() if known.recognises(path, start)), None)


def format_named(name):
    """The `Format` that can be written under this name. Raises ValueError with those there are."""
    writable = {known.name: known for known in formats() if known.write is not None}
    if name not in writable:
        raise ValueError(f"No format {name!r} can be written. There are: {', '.join(writable)}.")
    return writable[name]
