"""The user's cache folder: what can be made again, and is trusted because nobody else can write there."""

import os
import sys
from pathlib import Path

NAME = "bert4keras-rwkv"
VARIABLE = "BERT4KERAS_RWKV_CACHE"


class UnusableError(Exception):
    """Why a folder cannot keep what this process would run: a clause of a sentence."""


def cache_folder():
    """Where this user's programs keep what can be made again: the XDG rule, and what Windows and macOS have instead."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / NAME / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / NAME
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else home / ".cache") / NAME


def own_folder(name, chosen=None):
    """The folder `chosen`, else `name` in `cache_folder`, made if it is not there.

    Raises:
        UnusableError: it cannot be made, or somebody else could write to it.
    """
    try:
        folder = Path(chosen) if chosen else cache_folder() / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise UnusableError(f"it cannot be made, {error}") from error
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise UnusableError(f"'{folder}' belongs to, or can be written by, somebody else")
    return folder
