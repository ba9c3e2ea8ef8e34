"""The JSON index of weights that lie in several files: which name is in which."""

import json

from bert4keras_rwkv.weights.errors import WeightsError

LARGEST_INDEX = 16 << 20  # bytes; a 14B model's has 0.2 MB
MOST_LINES = 20


def weight_map(path, several=False):
    """Name -> file name from an index; `several`: or a list of them. Files lie beside it; other places are refused."""
    if path.stat().st_size > LARGEST_INDEX:
        raise WeightsError(f"'{path}' has {path.stat().st_size} bytes, and an index of shards a few thousand.")
    try:
        index = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"'{path}' is not a JSON file: {error}. An index of shards is wanted.") from error
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"'{path}' has no 'weight_map', so it is no index of shards.")
    files = [file for value in found.values() for file in (value if several and isinstance(value, list) else [value])]
    every_problem(path, sorted({f"{file!r} is no name of a file beside it" for file in files if not _beside(file)}))
    return found


def every_problem(path, problems):
    """Raise one `WeightsError` if there are problems."""
    if problems:
        more = f"\n  and {len(problems) - MOST_LINES} more" if len(problems) > MOST_LINES else ""
        raise WeightsError(f"'{path}' does not lead to a whole model:\n  " + "\n  ".join(problems[:MOST_LINES]) + more)


def _beside(file):
    """Whether it is the plain name of a file."""
    return isinstance(file, str) and file not in ("", ".", "..") and file.isprintable() and not set(file) & set("/\\:")
