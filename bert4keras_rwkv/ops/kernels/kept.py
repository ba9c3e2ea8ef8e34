"""Machine code in the user's cache folder: built once for all processes, and whole or not at all."""

import hashlib
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_files, locked
from bert4keras_rwkv.ops.cache import UnusableError, own_folder

PROOF, LOCK = ".sha256", ".lock"


class NoLibraryError(Exception):
    """Why there are no native kernels here: one sentence."""


def folder():
    """Where it is kept: `kernels` in the user's cache folder."""
    try:
        return own_folder("kernels")
    except UnusableError as error:
        raise NoLibraryError(
            f"Native kernels cannot be kept in the cache folder: {error}. XDG_CACHE_HOME names another on Linux."
        ) from error


def is_whole(path):
    """Whether the file is there, with the bytes that it was built with."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(PROOF).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def kept(path, build, again=False):
    """`path`, built if it is not there, not whole, or `again`. build: writes to the path that it is called with."""
    if not again and is_whole(path):
        return path  # in a folder that cannot be written to, too
    try:
        with locked(path.with_suffix(LOCK)):
            if again or not is_whole(path):
                with atomic_files(path, path.with_suffix(PROOF)) as (made, proof):  # they take their names together
                    build(made)
                    Path(proof).write_text(hashlib.sha256(Path(made).read_bytes()).hexdigest())
    except (OSError, ValueError) as error:  # ValueError: of a name that is a folder
        why = getattr(error, "strerror", None) or error
        raise NoLibraryError(f"Native kernels cannot be written to '{path.parent}': {why}.") from error
    return path


def clear(*patterns):
    """Remove the files in the folder that match a pattern. Returns their paths."""
    gone = sorted(path for pattern in patterns for path in folder().glob(pattern))
    for path in gone:
        for suffix in (path.suffix, PROOF, LOCK):
            path.with_suffix(suffix).unlink(missing_ok=True)
    return gone


def digest(items):
    """A digest of (name, content) each."""
    found = hashlib.sha256()
    for name, content in items:
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()
