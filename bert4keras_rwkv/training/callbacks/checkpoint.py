"""Training that was interrupted goes on as if it had not been.

Keras' BackupAndRestore keeps whole epochs, and its weight file lacks the random keys and merges a LoRA into the
kernel. So every variable is written here as it is.
"""

import json
import random
import re
import threading
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import remove_unfinished
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.backend import global_random_state, set_global_random_state
from bert4keras_rwkv.training.datasets import BatchDataset
from bert4keras_rwkv.training.folder import checkpoints
from bert4keras_rwkv.untrusted import parse_json
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors, write_safetensors
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, WeightsError, dtype_named

FORMAT = "bert4keras_rwkv.checkpoint"  # how our files name themselves
ENOUGH = "enough steps for this epoch"  # in `stop_training`; another callback would write True
COUNTED = re.compile(r"_\d+$")  # what Keras adds to a name that it gave before in this process
SHOWN = 5  # differences that an error lists


class TrainingCheckpoint(keras.callbacks.Callback):
    """Writes all that training depends on, and goes on from there when the same program is started again.

    That is: weights, optimizer (step, moments, averages, accumulated gradients), the random keys of Keras' seed
    generators, the global generators of Python, NumPy and PyTorch, the sums of the metrics, and the place in the data.
    On one machine and backend the losses are then those of a run that was not interrupted, bit by bit.

    folder: where `epoch-E-step-S.safetensors` appear, E epochs and S more steps trained. Each takes the space of all
    variables of model and optimizer. every: 'epoch', or after how many steps one is written. data: the
    `keras_dataset(...)` that `fit` is given, with `steps_per_epoch`. None: data that begin anew in each epoch, in the
    same order; then only 'epoch' is exact. keep: how many of the newest files stay.

    A file appears whole or not at all, so that a full disk, which is an OSError, or a kill leaves the one before. What
    other callbacks remember is not in it. A finished training that is started again trains nothing; with more `epochs`
    it goes on. The learning rate, if it is no schedule, is that of the file. `callbacks` must be a list, for Keras runs
    a lone callback late.

    Raises:
        ValueError: the newest file is of another model, optimizer, data or `steps_per_epoch`, or damaged.
    """

    def __init__(self, folder, every="epoch", data=None, keep=2):
        super().__init__()
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"`every` is 'epoch' or a number of steps, at least 1. Received: every={every!r}.")
        if every != "epoch" and data is None:
            raise ValueError(
                "To go on in the middle of an epoch the data must be found again: give `data`, the dataset of `fit`, "
                f"or take every='epoch'. Received: every={every!r}, data=None."
            )
        if data is not None and not isinstance(data, BatchDataset):
            raise ValueError(f"`data` is what `keras_dataset` gives. Received: {type(data).__name__}.")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"`keep` is how many checkpoints stay, at least 1. Received: keep={keep!r}.")
        self.folder, self.every, self.data, self.keep = Path(folder), every, data, keep
        self._first = 0 if data is None else data.start

    def on_train_begin(self, logs=None):
        self._thread = threading.get_ident()
        self._steps = self.params["steps"]
        if self.data is not None and self._steps is None:
            raise ValueError("With `data` the steps of an epoch must be known: fit(..., steps_per_epoch=len(batches)).")
        remove_unfinished(self.folder)
        self._offset, self._resumed, self._random, self._began = self._first, None, None, False
        found = checkpoints(self.folder)
        if found:
            self._restore(found[-1])

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._before = epoch, 0  # steps of this epoch that an earlier process trained
        if not self._began:
            self._begin(epoch)
        self._began = True
        self._trained, self._due, self._complete = self._before, False, self._steps is None

    def on_train_batch_begin(self, batch, logs=None):
        if self._random is not None:  # not earlier: PyTorch's reader of `data` draws a number when it begins
            _set_random_state(self._random)
            self._random = None

    def on_train_batch_end(self, batch, logs=None):
        if threading.get_ident() != self._thread:
            raise ValueError("Keras runs a lone callback late. Put it into a list: fit(..., callbacks=[checkpoint]).")
        if self._steps is None:
            return
        before, self._trained = self._trained, self._before + batch + 1
        self._due = self._is_due(before)
        self._complete = self._trained >= self._steps
        if self._due and not self._complete:
            self._write(self._epoch, self._trained)
        if self._complete and self._before:
            self._model.stop_training = ENOUGH  # `fit` would take the steps of a whole epoch

    def on_epoch_end(self, epoch, logs=None):
        if self._model.stop_training == ENOUGH:
            self._model.stop_training = False
        if self._complete and (self._due or self.every == "epoch"):
            self._write(epoch + 1, 0)

    def on_train_end(self, logs=None):
        self._model._initial_epoch = None  # said to this `fit` only

    def _begin(self, epoch):
        """Where the first epoch of this `fit` begins."""
        self._model._initial_epoch = None
        if self._resumed is not None:
            at, self._before, sums = self._resumed
            if at != epoch:
                raise ValueError(f"The checkpoint is of epoch {at}, and `fit` begins with {epoch}. Omit initial_epoch.")
            for variable, value in zip(self.model.metrics_variables if self._before else [], sums, strict=True):
                variable.assign(value)
            self._resumed = None
        if self.data is not None:
            self.data.start = self._offset + epoch * self._steps + self._before
        else:
            self.on_train_batch_begin(0)  # its reader begins, and draws, in each epoch

    def _is_due(self, before):
        """Whether a multiple of `every` steps lies behind step `before` of this epoch."""
        if self.every == "epoch":
            return False
        here = self._epoch * self._steps
        return (here + self._trained) // self.every > (here + before) // self.every

    def _write(self, epoch, step):
        """A file for the place before step `step` of an epoch; then the oldest go."""
        number = None if self.data is None else self._offset + epoch * self._steps + step
        place = {
            "epoch": epoch,
            "step": step,
            "steps_per_epoch": self._steps,
            "optimizer": type(self.model.optimizer).__name__,
            "data": None if self.data is None else self.data.batches.state(number),
            "random": _random_state(),
        }
        path = self.folder / f"epoch-{epoch:06d}-step-{step:09d}.safetensors"
        tensors = {name: _tensor(variable) for name, variable in _variables(self.model, metrics=step > 0).items()}
        metadata = {"format": FORMAT, "version": "1", "place": json.dumps(place)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, Tensors(tensors), metadata=metadata)
        except OSError as error:
            kept = checkpoints(self.folder)
            left = f"The last one stays: {kept[-1].name}." if kept else "There is none yet."
            why = f"A checkpoint could not be written: {error.strerror}. {left}"
            raise OSError(error.errno, why, path) from error
        for old in checkpoints(self.folder)[: -self.keep]:
            old.unlink()

    def _restore(self, path):
        """Take over a file, all or nothing. The sums of metrics wait until `fit` has cleared them."""
        model = self.model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        with _opened(path) as tensors:
            place = _place(tensors, path)
            if place["step"] and self.data is not None:
                _make_metrics(model, self.data)
            variables = _variables(model, metrics=place["step"] > 0)
            self._check(path, place, tensors, variables)
            values = {name: tensors[name] for name in tensors if name.startswith("metrics/")}
            for name, variable in variables.items():
                if name not in values:
                    variable.assign(tensors[name])
        if self.data is not None:
            number = self.data.batches.number_of(place["data"])
            self._offset = number - place["epoch"] * self._steps - place["step"]
        self._random = place["random"]
        self._resumed = place["epoch"], place["step"], list(values.values())
        model._initial_epoch = place["epoch"]

    def _check(self, path, place, tensors, variables):
        """Whether a file is of this model, optimizer and data; every difference in one message."""
        now = {"steps_per_epoch": self._steps, "optimizer": type(self.model.optimizer).__name__}
        faults = [f"{name}={place[name]}, now {one}" for name, one in now.items() if place[name] != one]
        if (place["data"] is None) != (self.data is None):
            faults.append("one of them has `data`, the other none")
        here = {name: (tuple(one.shape), dtype_named(one.dtype)) for name, one in variables.items()}
        there = {name: (entry.shape, entry.dtype) for name, entry in tensors.entries().items()}
        for name in sorted({*here, *there}):
            if here.get(name) != there.get(name):
                faults.append(f"'{name}' is {_said(there.get(name))}, now {_said(here.get(name))}")
        if len(faults) > SHOWN:
            faults[SHOWN:] = [f"and {len(faults) - SHOWN} more"]
        if faults:
            raise ValueError(
                f"The checkpoint {path} is of another training:\n  " + "\n  ".join(faults) + "\n"
                "Start the program that wrote it, or take another folder."
            )
        if self.data is not None:
            self.data.batches.number_of(place["data"])


def _opened(path):
    """The tensors of a file, lazily."""
    try:
        tensors = open_safetensors(path)
    except WeightsError as error:
        raise ValueError(f"{error} Delete it to go on from the one before.") from error
    if (tensors.metadata.get("format"), tensors.metadata.get("version")) != (FORMAT, "1"):
        tensors.close()
        raise ValueError(f"{path} is no file of TrainingCheckpoint of this version. Take another folder.")
    return tensors


def _place(tensors, path):
    """What a file says of the place in a training. Anything but what `_write` writes is a ValueError."""
    place = parse_json(tensors.metadata.get("place", ""), f"What {path} says of its place in a training")
    place = place if isinstance(place, dict) else {}
    data, seeds = place.get("data", ""), place.get("random")
    batches = data is None or (isinstance(data, dict) and {"order", "batch"} <= set(data))
    numbers = all(type(place.get(name)) is int and place[name] >= 0 for name in ("epoch", "step"))
    random_state = isinstance(seeds, dict) and {"python", "numpy", "backend"} <= set(seeds)
    if not batches or not numbers or not random_state or not {"steps_per_epoch", "optimizer"} <= set(place):
        raise ValueError(f"{path} does not say where in a training it stands. Delete it to go on from the one before.")
    return place


def _make_metrics(model, data):
    """The metrics of `compile`, which Keras makes in the first step on TensorFlow, and elsewhere before."""
    if not all(getattr(one, "built", True) for one in model.metrics):
        (x,) = data[0]
        model.compute_metrics(x, None, model(x))


def _variables(model, metrics):
    """Name -> variable, in the order in which the same program makes them."""
    groups = {"model": model.variables, "metrics": model.metrics_variables if metrics else []}
    names = {
        f"{group}/{number:05d}/{COUNTED.sub('', variable.name)}": variable
        for group, variables in groups.items()
        for number, variable in enumerate(variables)
    }
    numbered = enumerate(model.optimizer.variables)  # whose names hold those of layers, which are counted
    return names | {f"optimizer/{number:05d}": variable for number, variable in numbered}


def _tensor(variable):
    """A variable, not read yet."""
    shape, dtype = tuple(variable.shape), dtype_named(variable.dtype)
    return Tensor(shape, dtype, lambda: np.asarray(ops.convert_to_numpy(variable.value), dtype))


def _said(kind):
    return "not there" if kind is None else f"{kind[1]} {kind[0]}"


def _random_state():
    """The global generators of Python, NumPy and the backend, for JSON."""
    name, keys, *rest = np.random.get_state()
    backend = [state.hex() for state in global_random_state()]
    return {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest], "backend": backend}


def _set_random_state(state):
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, "uint32"), *rest))
    set_global_random_state([bytes.fromhex(one) for one in state["backend"]])
