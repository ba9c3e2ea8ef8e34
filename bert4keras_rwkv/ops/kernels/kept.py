"""Machine code in the user's cache folder: built once for all processes, and whole or not at all."""

import hashlib
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_files, locked, remove_unfinished
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
    proof = path.with_suffix(PROOF)
    try:
        if not (path.is_file() and proof.is_file()):
            return False  # a pipe has no end
        return hashlib.sha256(path.read_bytes()).hexdigest() == proof.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def kept(path, build, again=False):
    """`path`, built if it is not there, not whole, or `again`. build: writes to the path that it is called with.

    What stands beside that path goes with the process, or when the next one builds.
    """
    if not again and is_whole(path):
        return path  # in a folder that cannot be written to, too
    try:
        with locked(lock_of(path)):
            if again or not is_whole(path):
                _make_room(path, path.with_suffix(PROOF))
                with atomic_files(path, path.with_suffix(PROOF)) as (made, proof):  # they take their names together
                    build(made)
                    Path(proof).write_text(hashlib.sha256(Path(made).read_bytes()).hexdigest())
    except OSError as error:
        where = error.filename or path.parent
        raise NoLibraryError(f"Native kernels cannot be written to '{where}': {error.strerror or error}.") from error
    return path


def lock_of(path):
    """One for all of a kind: of a file whose name is another each time nothing else would stay."""
    return path.with_name(path.name.partition("-")[0] + LOCK)


def _make_room(*paths):
    """Remove links, which may lead to files that are not ours. Raises NoLibraryError where something else stands."""
    for path in paths:
        if path.is_symlink():
            path.unlink()
        elif path.exists() and not path.is_file():
            raise NoLibraryError(f"'{path}' is no file, and native kernels are to be kept there. Remove it.")


def clear(*patterns):
    """Remove the files in the folder that match a pattern, and what belongs to them. Returns their paths."""
    where = folder()
    gone = sorted(path for pattern in patterns for path in where.glob(pattern))
    for path in (*gone, *(path.with_suffix(PROOF) for path in gone), *where.glob(f"*{LOCK}")):
        path.unlink(missing_ok=True)
    remove_unfinished(where)
    return gone


def digest(items):
    """A digest of (name, content) each."""
    found = hashlib.sha256()
    for name, content in items:
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()
