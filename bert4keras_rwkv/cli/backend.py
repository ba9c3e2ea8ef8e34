"""Choosing the backend of a command, before Keras is loaded, and keeping what JAX compiled for the next start."""

import contextlib
import importlib
import logging
import os
import sys
from pathlib import Path

from bert4keras_rwkv.keras_loader import VARIABLE, all_kept, check_backend
from bert4keras_rwkv.ops.cache import cache_folder

# Keras imports these if they are installed, to plot and for notebooks, which no command does. It takes as long again.
UNUSED = ("matplotlib", "IPython")


def choose_engine(name=None, default="jax"):
    """Load Keras on the backend `name`, else KERAS_BACKEND, else `default`. Returns its name.

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
    with all_kept(), without(UNUSED):
        if chosen == "jax":
            keep_compiled_programs()
        importlib.import_module("keras")
    return chosen


def _no_retracing(record):
    """Leave out TensorFlow's advice on functions that are compiled again, which is meant for who wrote them."""
    return "retracing" not in record.getMessage()


@contextlib.contextmanager
def without(modules):
    """While it lasts these cannot be imported, unless they are already; afterwards they can."""
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


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
