"""A range test for the learning rate: Smith, arXiv 1506.01186."""

import math

import numpy as np

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.training.callbacks.copies import Copies, optimizer_variables


class LearningRateFinder(keras.callbacks.Callback):
    """Trains for some steps with a rate that grows from step to step, notes the losses, and undoes it all.

        finder = LearningRateFinder()
        model.fit(data, steps_per_epoch=100, shuffle=False, callbacks=[finder])
        finder.suggestion, finder.plot("rates.png")

    lowest, highest: rates of the first and the last step; between them each is the same multiple of the one before.
    steps: how many; `fit` has to have as many. smoothing: how much of the average of the losses stays at each step, in
    [0, 1). diverged: the test ends when the average is above its lowest by this factor, or not finite.

    Afterwards: rates, losses, smoothed (a list each, one entry a step), suggestion. Weights and optimizer are those of
    before, with any optimizer whose rate is a number, whatever trains. It is a run of its own: it ends the `fit`, and
    resets metrics at each step. Costs a copy of all variables in main memory.
    """

    def __init__(self, lowest=1e-6, highest=10.0, steps=100, smoothing=0.9, diverged=1.5):
        super().__init__()
        if not 0 < lowest < highest:
            raise ValueError(f"Rates grow from `lowest` to `highest`. Received: {lowest} and {highest}.")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"`steps` is a number of at least 2. Received: steps={steps!r}.")
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` lies in [0, 1). Received: smoothing={smoothing!r}.")
        self.lowest, self.highest, self.steps = lowest, highest, steps
        self.smoothing, self.diverged = smoothing, diverged
        self.rates, self.losses, self.smoothed = [], [], []

    def on_train_begin(self, logs=None):
        model = self.model
        if not isinstance(model.optimizer.learning_rate, keras.Variable):
            raise ValueError(
                "The finder sets the learning rate itself. Compile with a number in place of the schedule, such as "
                "AdamW(1e-3)."
            )
        self.rates, self.losses, self.smoothed = [], [], []
        self._average = 0.0
        self._before = Copies([*model.variables, *optimizer_variables(model)])

    def on_train_batch_begin(self, batch, logs=None):
        model, step = self.model, len(self.rates)
        model.reset_metrics()  # the loss is the mean of an epoch, and here that of one step is wanted
        rate = self.lowest * (self.highest / self.lowest) ** (step / (self.steps - 1))
        model.optimizer.learning_rate = rate
        self.rates.append(rate)

    def on_train_batch_end(self, batch, logs=None):
        loss, step = float(logs["loss"]), len(self.rates)
        self._average = self.smoothing * self._average + (1 - self.smoothing) * loss
        smoothed = self._average / (1 - self.smoothing**step)
        self.losses.append(loss)
        self.smoothed.append(smoothed)
        lowest = min(self.smoothed)
        if step == self.steps or not math.isfinite(loss) or smoothed > lowest + (self.diverged - 1) * abs(lowest):
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self._before.restore()
        self._before = None

    @property
    def suggestion(self):
        """A tenth of the rate at which the smoothed loss was lowest.

        Raises:
            ValueError: the loss never fell; nothing can be said.
        """
        finite = np.isfinite(self.smoothed)
        if finite.sum() < 2 or np.argmin(np.where(finite, self.smoothed, np.inf)) == 0:
            raise ValueError(
                f"The loss never fell between the rates {self.lowest} and {self.highest} "
                f"({len(self.rates)} steps were made). Begin lower, or make more steps."
            )
        return self.rates[int(np.argmin(np.where(finite, self.smoothed, np.inf)))] / 10

    def plot(self, path):
        """Loss over rate as a picture, with the suggestion. path: its suffix says the format. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("A picture needs matplotlib: pip install matplotlib.") from error
        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.subplots()
        axes.plot(self.rates[: len(self.losses)], self.losses, linewidth=0.7, alpha=0.5, label="loss of the step")
        axes.plot(self.rates[: len(self.losses)], self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, color="black", linestyle=":", label=f"suggestion: {self.suggestion:.1e}")
        low, high = np.nanmin(self.smoothed), self.smoothed[0]
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (nats a token)")
        axes.set_ylim(low - 0.3 * (high - low), high + (high - low))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=110)
