"""Files that hold part of a model, a state or an adapter: `.pth` or `.safetensors` with names of their own."""

from pathlib import Path

from bert4keras_rwkv.weights.formats.pth import is_pth, open_pth
from bert4keras_rwkv.weights.formats.registry import beginning
from bert4keras_rwkv.weights.formats.safetensors_file import is_safetensors, open_safetensors
from bert4keras_rwkv.weights.tensors import WeightsError

WEB_SUFFIXES = (".st", ".state")  # suffixes that only web-rwkv and Ai00 give to safetensors of other people's tensors


def open_part(path):
    """The tensors of a `.pth` or `.safetensors` as they lie there, lazily, without 'model.' before their names.

    Anything else is a `WeightsError`.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"'{path}' is a folder. A state or an adapter is one file, a `.pth` or `.safetensors`.")
    opener = _opener(path)
    if opener is None:
        raise WeightsError(
            f"A state or an adapter is a `.pth` or `.safetensors`. '{path}' begins with {beginning(path)[:8]!r}."
        )
    return opener(path)


def may_be_part(path):
    """Whether `open_part` can look into it."""
    return _opener(Path(path)) is not None


def _opener(path):
    """What reads a file with these first bytes, or None."""
    start = beginning(path)
    return open_pth if is_pth(path, start) else open_safetensors if is_safetensors(path, start) else None


def zipped(path):
    """Whether the file of `open_part` is a `.pth`."""
    return is_pth(path, beginning(Path(path)))


def some(names):
    """A few names, for a message."""
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:4]) or "nothing"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
