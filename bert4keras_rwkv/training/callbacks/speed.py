"""How fast training is, in the logs."""

import time

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops


class TokensPerSecond(keras.callbacks.Callback):
    """Adds `tokens_per_second` to the logs of an epoch: tokens trained on, over the time they took.

    tokens: of one step, to count all positions, padding too (B * T). None: what the metric `Tokens` counts, tokens that
    are predicted; the model must be compiled with one, in its `weighted_metrics` if it is no training model.
    Validation is not counted, nor the first step of a `fit`, in which programs are compiled. Put it before callbacks
    that write logs.
    """

    def __init__(self, tokens=None):
        super().__init__()
        if tokens is not None and not tokens > 0:
            raise ValueError(f"`tokens` is how many a step has, more than 0. Received: tokens={tokens!r}.")
        self.tokens = tokens

    def on_train_begin(self, logs=None):
        self._first = True

    def on_epoch_begin(self, epoch, logs=None):
        self._began, self._steps, self._counted, self._last, self._result = time.perf_counter(), 0, 0.0, None, None

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        self._last = logs
        if self._first:
            self._first, self._counted = False, self._count()
            self._began = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._finish()

    def on_epoch_end(self, epoch, logs=None):
        self._finish()
        if self._result is not None:
            logs["tokens_per_second"] = self._result

    def _finish(self):
        """The speed of this epoch, once."""
        if getattr(self, "_last", None) is None:
            return
        count = self._count() - self._counted
        if count > 0:
            self._result = count / (time.perf_counter() - self._began)
        self._last = None

    def _count(self):
        """Tokens of this epoch so far. Waits for the last step to end."""
        if self.tokens is not None:
            float(np.asarray(ops.convert_to_numpy(self._last["loss"])))
            return self.tokens * self._steps
        if "tokens" not in self._last:
            raise ValueError(
                "Tokens are counted by a metric. Compile the model with metrics=[Tokens()] of `training.metrics`, or "
                "say how many a step has: TokensPerSecond(tokens=batch_size * length)."
            )
        return float(np.asarray(ops.convert_to_numpy(self._last["tokens"])))
