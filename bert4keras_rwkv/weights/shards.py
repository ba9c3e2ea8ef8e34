"""The JSON index of weights that lie in several files: which name is in which."""

import os

from bert4keras_rwkv.untrusted import parse_json, shown
from bert4keras_rwkv.weights.tensors import WeightsError

LARGEST_INDEX = 16 << 20  # bytes; a 14B model's has 0.2 MB
MOST_SHARDS = 1 << 10  # each stays open
MOST_LINES = 20


def weight_map(path, several=False):
    """Name -> file name from an index; `several`: or a list of them. Files lie beside it; other places are refused."""
    if path.stat().st_size > LARGEST_INDEX:
        raise WeightsError(f"'{path}' has {path.stat().st_size} bytes, and an index of shards a few thousand.")
    try:
        index = parse_json(path.read_bytes(), f"'{path}'")
    except ValueError as error:
        raise WeightsError(f"{error} An index of shards is wanted.") from error
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"'{path}' has no 'weight_map', so it is no index of shards.")
    files = [file for value in found.values() for file in (value if several and isinstance(value, list) else [value])]
    every_problem(
        path, sorted({f"{shown(file)} is no name of a file beside it" for file in files if not _is_plain(file)})
    )
    every_problem(
        path, [f"'{file}' is a link out of its folder: put the file itself there" for file in _linked_out(path, files)]
    )
    if len(set(files)) > MOST_SHARDS:
        raise WeightsError(f"'{path}' names {len(set(files))} files, and no model lies in more than {MOST_SHARDS}.")
    return found


def every_problem(path, problems):
    """Raise one `WeightsError` if there are problems."""
    if problems:
        more = f"\n  and {len(problems) - MOST_LINES} more" if len(problems) > MOST_LINES else ""
        raise WeightsError(f"'{path}' does not lead to a whole model:\n  " + "\n  ".join(problems[:MOST_LINES]) + more)


def _linked_out(path, files):
    """Those that are links to another folder. They may lie beside what the index, itself a link, leads to: so it is in
    the cache of Hugging Face.
    """
    folders = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
    return [f for f in dict.fromkeys(files) if os.path.dirname(os.path.realpath(path.parent / f)) not in folders]


def _is_plain(file):
    """Whether it is the plain name of a file."""
    return isinstance(file, str) and file not in ("", ".", "..") and file.isprintable() and not set(file) & set("/\\:")
