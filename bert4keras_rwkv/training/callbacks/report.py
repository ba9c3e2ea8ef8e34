"""How a training goes, from time to time, and its end at a given step."""

import math
import time

from bert4keras_rwkv.keras_loader import keras


class ReportLosses(keras.callbacks.Callback):
    """Calls `report(step, loss, tokens_per_second)` after every epoch of `fit`, and ends it after `steps` steps.

    Epochs are a number of steps here. loss: the mean of the epoch. tokens: in a step; what is computed between epochs
    does not count.

    Raises:
        ValueError: the loss became NaN or infinite: from which step to which.
    """

    def __init__(self, steps, tokens, report):
        super().__init__()
        self.steps, self.tokens, self.report = steps, tokens, report

    def on_epoch_begin(self, epoch, logs=None):
        self._before = epoch * self.params["steps"]
        self._done, self._clock, self._counted = 0, None, 0

    def on_train_batch_end(self, batch, logs=None):
        self._done = batch + 1
        if self._clock is None:  # the first step may compile
            self._clock, self._counted = time.perf_counter(), self._done
        if self._before + self._done >= self.steps:
            self._model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        step, loss = self._before + self._done, float(logs["loss"])
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss became {loss} between step {self._before + 1} and {step}. Take a smaller learning rate, or "
                "a longer warm-up."
            )
        seconds = time.perf_counter() - self._clock
        self.report(step, loss, (self._done - self._counted) * self.tokens / max(seconds, 1e-9))
