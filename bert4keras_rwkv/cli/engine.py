"""Choosing the backend of a command, before Keras is loaded, and keeping what JAX compiled for the next start."""

import logging
import os
import sys
from pathlib import Path

from bert4keras_rwkv.keras_loader import VARIABLE, check_backend

NAME = "bert4keras-rwkv"


def choose_engine(name=None, default="jax"):
    """Set the Keras backend of this process: `name`, else KERAS_BACKEND, else `default`. Returns it.

    Only a command does this, never an import. Keras reads the variable when it is first loaded. Raises ImportError if
    the backend is not installed.
    """
    told = os.environ.get(VARIABLE)
    if name:
        check_backend(name, "as --backend says", "--backend")
    elif told:
        check_backend(told, f"as {VARIABLE} says")
    else:
        check_backend(default, "the default of this command")
    chosen = os.environ[VARIABLE] = name or told or default
    if chosen == "tensorflow":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it greets with the processor's features otherwise
        logging.getLogger("tensorflow").addFilter(_no_retracing)
    if chosen == "jax":
        keep_compiled_programs()
    return chosen


def _no_retracing(record):
    """Leave out TensorFlow's advice on functions that are compiled again, which is meant for who wrote them."""
    return "retracing" not in record.getMessage()


def keep_compiled_programs(folder=None):
    """Turn JAX's persistent compile cache on, in the user's cache folder, however short a compilation was.

    A folder that the user set (JAX_COMPILATION_CACHE_DIR) stays; one that cannot be made leaves the cache off.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    folder = Path(folder or cache_folder() / "jax")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder():
    """Where this user's programs keep what can be made again: the XDG rule, and what Windows and macOS have instead."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / NAME / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / NAME
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else home / ".cache") / NAME
