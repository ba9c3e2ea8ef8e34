"""Callbacks for `fit`. They are loaded when they are first used: importing this loads no Keras."""

from bert4keras_rwkv.public_names import public_names

__getattr__, __dir__, __all__ = public_names(
    __name__,
    {
        "LearningRateFinder": ".finder",
        "StopOnNaN": ".finite",
        "TokensPerSecond": ".speed",
        "TrainingCheckpoint": ".checkpoint",
    },
)
