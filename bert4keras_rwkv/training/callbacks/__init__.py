"""Callbacks for `fit`. They are loaded when they are first used: importing this loads no Keras."""

import importlib

PUBLIC = {
    "LearningRateFinder": "finder",
    "StopOnNaN": "finite",
    "TokensPerSecond": "speed",
    "TrainingCheckpoint": "checkpoint",
}
__all__ = [*PUBLIC]


def __getattr__(name):
    if name not in PUBLIC:
        raise AttributeError(f"bert4keras_rwkv.training.callbacks has no '{name}'. It has: {', '.join(PUBLIC)}.")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *PUBLIC])
