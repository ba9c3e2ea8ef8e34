"""Choosing the backend of a command, before Keras is loaded, and keeping what JAX compiled for the next start."""

import os
from pathlib import Path

from bert4keras_rwkv.generation.executables import cache_folder


def choose_engine(name=None):
    """Set the Keras backend of this process: `name`, else KERAS_BACKEND, else jax. Returns it.

    Only a command does this, never an import. Keras reads the variable when it is first loaded.
    """
    chosen = name or os.environ.get("KERAS_BACKEND") or "jax"
    os.environ["KERAS_BACKEND"] = chosen
    if chosen == "tensorflow":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it greets with the processor's features otherwise
    if chosen == "jax":
        keep_compiled_programs()
    return chosen


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
