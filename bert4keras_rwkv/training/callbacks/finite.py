"""A loss or weight that is no number ends training, with all that is needed to find out why."""

import math
import warnings
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.models.finite import finite, first_not_finite
from bert4keras_rwkv.training.callbacks.copies import Copies, optimizer_variables

PARTS = ("x", "y", "sample_weight")


class StopOnNaN(keras.callbacks.Callback):
    """Stops at the first step whose loss, or a weight after it, is NaN or infinite.

    The error (FloatingPointError) names the step, the first layer whose output is not finite, or else the one nearest
    to the loss whose gradient is not, and the file of the batch, `folder/step-N.npz`: its arrays by name. The weights
    are again those of before the step; the moments of the optimizer are not, so compile anew.

    data: what `fit` is given, a `keras_dataset(...)`, a `recent_batches(...)` of any iterable, or a `PyDataset` of your
    own that is not shuffled: batch n of the `fit` is data[n]. None: the batch is lost, and with it the name of the
    layer whose output is not finite. folder: for the batch. stop: False takes the step back (weights, optimizer, and
    the metrics of the epoch begin anew), warns, and goes on with the next batch.

    Each step costs a copy in main memory of what trains, of the optimizer too if stop is False: little for a state or a
    LoRA. Keras' `TerminateOnNaN` costs nothing and says nothing.
    """

    def __init__(self, data=None, folder=".", stop=True):
        super().__init__()
        if data is not None and not isinstance(data, keras.utils.PyDataset):
            raise ValueError(
                "`data` is a PyDataset, whose batches are found again by their number. Make one with "
                f"`keras_dataset(batches)` or `recent_batches(iterable)`. Received: {type(data).__name__}."
            )
        self.data, self.folder, self.stop = data, Path(folder), stop

    def on_train_begin(self, logs=None):
        self._step = 0
        self._before = self._copies()

    def on_train_batch_end(self, batch, logs=None):
        step, self._step, loss = self._step, self._step + 1, float(logs["loss"])
        after = self._copies()
        spoilt = [v for v, value in zip(after.variables, after.values, strict=True) if not finite(value)]
        if math.isfinite(loss) and not spoilt:
            self._before = after
            return
        self._before.restore()
        said = self._report(step, batch, loss, spoilt)
        if self.stop:
            raise FloatingPointError(f"{said} The weights are those of before the step.")
        warnings.warn(f"{said} The step is taken back.", stacklevel=2)
        self.model.reset_metrics()

    def _copies(self):
        model = self.model
        return Copies(model.trainable_variables + ([] if self.stop else optimizer_variables(model)))

    def _report(self, step, batch, loss, spoilt):
        """What is known about a step; the batch is written."""
        inputs = None if self.data is None else self._batch(step)
        where = f"Step {step} of this `fit` (batch {batch} of its epoch): "
        where += f"the loss is {loss}." if not math.isfinite(loss) else f"the loss is finite, {loss}, the weights not."
        if inputs is None:
            known = "Give `data` to have the batch written and its first layer named."
        else:
            path = self.folder / f"step-{step}.npz"
            write_batch(path, inputs)
            layer = first_layer(self.model, inputs[0])
            known = f"The batch is in '{path}'."
            if layer is not None:
                return f"{where} The first layer whose output is not finite is '{layer}'. {known}"
        spoilt = [variable.path for variable in spoilt if any(variable is v for v in self.model.trainable_variables)]
        if spoilt:
            known = f"The gradient is not finite, nearest to the loss that of '{spoilt[-1]}'. {known}"
        return f"{where} {known}"

    def _batch(self, step):
        """The batch as a tuple, or None if it is forgotten."""
        count = self.data.num_batches
        batch = self.data[step if count is None else step % count]
        return batch if isinstance(batch, tuple) else (batch,)


def write_batch(path, batch):
    """Write a batch (x [, y [, sample_weight]]) to an npz file, whole or not at all: 'x.Input-Token', 'y'."""
    arrays = {}
    for name, part in zip(PARTS, batch, strict=False):
        for where, leaf in keras.tree.flatten_with_path(part):
            arrays[".".join([name, *map(str, where)])] = np.asarray(ops.convert_to_numpy(leaf))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)


def first_layer(model, inputs):
    """The path of the first layer whose output for these inputs is not finite, None if all are. Runs without graph."""
    return first_not_finite(
        model, lambda: model(keras.tree.map_structure(ops.convert_to_tensor, _as_given(model, inputs)))
    )


def _as_given(model, inputs):
    """The inputs in the structure that a functional model was made with; `fit` takes others, a call warns."""
    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        return inputs
    named = isinstance(inputs, dict) and not isinstance(structure, dict)
    leaves = [inputs[tensor.name] for tensor in model.inputs] if named else keras.tree.flatten(inputs)
    return keras.tree.pack_sequence_as(structure, leaves)
