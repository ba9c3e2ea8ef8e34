"""Keras, for every other module: `from bert4keras_rwkv.keras_loader import keras, ops`.

Keras chooses its backend when it is first imported, and where that is not installed it fails half loaded, with a long
traceback. Here one sentence says so before anything is loaded, and KERAS_BACKEND can be set and the import tried again.
Importing this module itself loads nothing and reads no environment.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

INSTALLED_BY = {"jax": "jax", "tensorflow": "'bert4keras_rwkv[tensorflow]'", "torch": "'bert4keras_rwkv[torch]'"}
BACKENDS = (*INSTALLED_BY, "numpy")
VARIABLE = "KERAS_BACKEND"
DEFAULT = "tensorflow"  # of Keras


def __getattr__(name):
    if name not in ("keras", "ops"):
        raise AttributeError(f"{__name__} has no '{name}'. It has: keras, ops.")
    if "keras" not in sys.modules:
        check_backend(*chosen_backend())
    with all_kept():
        keras = importlib.import_module("keras")
    return keras if name == "keras" else keras.ops


@contextlib.contextmanager
def all_kept():
    """While it lasts no garbage is looked for: what is made stays. In an import, or while a model is built,
    looking takes a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def chosen_backend():
    """(backend, who says so): what Keras will run on when it is imported. It decides in the same way."""
    if name := os.environ.get(VARIABLE):
        return name, f"as {VARIABLE} says"
    file = _settings_file()
    try:
        settings = json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError:  # Keras passes over it
        settings = {}
    return (settings["backend"], f"as {file} says") if "backend" in settings else (DEFAULT, "its default")


def check_backend(name, why, setting=f"the environment variable {VARIABLE}"):
    """Raise ImportError unless Keras can run on the backend `name`.

    why: who says so, for the message. setting: what a user changes to say something else.
    """
    known = name in BACKENDS
    if known and find_spec(name) is not None:
        return
    there = " or ".join(backend for backend in INSTALLED_BY if find_spec(backend) is not None)
    ways = [f"set {setting} to {there}"] if there else []
    ways += [f"run `pip install {INSTALLED_BY[name]}`"] if name in INSTALLED_BY else []
    fault = "which is not installed" if known else f"which is none of {', '.join(BACKENDS)}"
    raise ImportError(f"Keras would run on {name!r}, {why}, {fault}: {', or '.join(ways) or 'run `pip install jax`'}.")


def _settings_file():
    """Where Keras looks for its settings."""
    folder = os.environ.get("KERAS_HOME")
    if folder is None:
        home = os.path.expanduser("~")
        folder = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(folder, "keras.json").expanduser()
