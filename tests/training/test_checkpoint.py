"""Training that was interrupted and started again is the training that was not, bit by bit."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert4keras_rwkv.training import PackedBatches, keras_dataset
from bert4keras_rwkv.training.callbacks import TrainingCheckpoint
from bert4keras_rwkv.training.callbacks.checkpoint import FORMAT
from bert4keras_rwkv.weights.formats import safetensors_file

STEPS, EPOCHS, ROOT = 5, 3, Path(__file__).parent.parent.parent
DOCUMENTS = [np.random.default_rng(number).integers(0, 20, 10) for number in range(12)]
# The same program again and again. Arguments: folder of the checkpoints, file for the losses, the step at which it
# kills itself, 0 for never.
PROGRAM = """
import json, os, signal, sys
import keras
from tests.training.test_checkpoint import new_model, train

folder, file, stop = sys.argv[1], open(sys.argv[2], "w"), int(sys.argv[3])

class Written(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        print(json.dumps(logs["loss"]), file=file, flush=True)
        if self.steps == stop:
            os.kill(os.getpid(), signal.SIGKILL)

model = new_model()
keras.utils.set_random_seed(1)
train(model, folder, Written())
"""


def new_model():
    """A model with everything that has to go on: dropout, a LoRA, a schedule, moments, averages, summed gradients."""
    import keras

    from bert4keras_rwkv.layers import NextTokenLoss

    keras.utils.set_random_seed(1)
    ids, reset = (keras.Input((None,), dtype="int32", name=name) for name in ("Input-Token", "Reset"))
    head = keras.layers.Dense(20)
    x = keras.layers.Dropout(0.5)(keras.layers.Embedding(20, 8)(ids))
    model = keras.Model([ids, reset], NextTokenLoss(pad_token_id=None)([ids * (1 - reset), head(x)]))
    head.enable_lora(2)
    schedule = keras.optimizers.schedules.CosineDecay(1e-1, 20)
    model.compile(
        keras.optimizers.AdamW(schedule, use_ema=True, ema_overwrite_frequency=4, gradient_accumulation_steps=2)
    )
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, folder, *callbacks, every=3, length=5, epochs=EPOCHS, steps=STEPS, keep=2):
    """Fit on the same data, with checkpoints; from the newest one, if there is one."""
    data = keras_dataset(PackedBatches(DOCUMENTS, length, 2))
    callbacks = [TrainingCheckpoint(folder, every, data, keep), *callbacks]
    model.fit(data, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=callbacks)


class Stopped(Exception):
    """Stands for what ends a process."""


def losses(stop=0):
    """A callback that keeps the mean loss after each step and of each epoch, and raises `Stopped` after step `stop`."""
    import keras

    class Losses(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.steps, self.epochs = [], []

        def on_train_batch_end(self, batch, logs=None):
            self.steps.append(logs["loss"])
            if len(self.steps) == stop:
                raise Stopped

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append((epoch, logs["loss"]))

    return Losses()


@pytest.fixture(scope="module")
def model():
    """Compiled once for all tests."""
    return new_model()


@pytest.fixture(scope="module")
def begin(model):
    """The values of all variables at the beginning."""
    return [variable.numpy().copy() for variable in everything(model)]


def everything(model):
    return [*model.variables, *model.optimizer.variables]


@pytest.fixture
def restart(model, begin):
    """As a new process would begin."""
    import keras

    def start():
        keras.utils.set_random_seed(1)  # on PyTorch dropout draws from its global generator
        for variable, value in zip(everything(model), begin, strict=True):
            variable.assign(value)

    return start


@pytest.fixture(scope="module")
def whole(model, begin, tmp_path_factory):
    """(losses of all steps, of all epochs, weights at the end) of a run that was not interrupted."""
    import keras

    keras.utils.set_random_seed(1)
    seen = losses()
    train(model, tmp_path_factory.mktemp("whole"), seen)
    return seen.steps, seen.epochs, [weight.tobytes() for weight in model.get_weights()]


def test_interrupted_again_and_again(model, restart, whole, tmp_path):
    """Before the first checkpoint, in the middle of an epoch, twice in one epoch, and behind the end of one."""
    restart()
    at, epochs = 0, []
    for stop, goes_on_at in [(2, 0), (5, 3), (4, 6), (3, 9), (0, None)]:
        seen = losses(stop)
        if stop:
            with pytest.raises(Stopped):
                train(model, tmp_path, seen)
        else:
            train(model, tmp_path, seen)
        assert seen.steps == whole[0][at : at + len(seen.steps)]
        epochs += seen.epochs
        at = goes_on_at
        if stop:
            restart()
    assert epochs[-2:] == whole[1][-2:] and len(seen.steps) == STEPS * EPOCHS - 9
    assert [weight.tobytes() for weight in model.get_weights()] == whole[2]


def test_a_finished_run_trains_nothing_more(model, restart, whole, tmp_path):
    """Started again it ends as before; with more epochs it goes on where it ended. The newest two files stay."""
    restart()
    train(model, tmp_path)
    for epochs in (EPOCHS, EPOCHS + 1):
        restart()
        seen = losses()
        train(model, tmp_path, seen, epochs=epochs)
        assert len(seen.steps) == (epochs - EPOCHS) * STEPS
        assert ([weight.tobytes() for weight in model.get_weights()] == whole[2]) == (epochs == EPOCHS)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"epoch-00000{epoch}-step-{step:09d}.safetensors" for epoch, step in ((3, 0), (3, 3))]


def test_a_full_disk_leaves_the_last_good_one(model, restart, whole, tmp_path, monkeypatch):
    """The error says so; nothing unfinished stays; and training goes on from the file that is left."""
    restart()
    with pytest.raises(Stopped):
        train(model, tmp_path, losses(4))
    (good,) = tmp_path.iterdir()
    before = good.read_bytes()

    def full(tensors, name):
        yield b"some"
        raise OSError(errno.ENOSPC, "No space left on device")

    restart()
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=f"No space left.* The last one stays: {good.name}"),
    ):
        patch.setattr(safetensors_file, "bytes_of", full)
        train(model, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    restart()
    seen = losses()
    train(model, tmp_path, seen)
    assert seen.steps == whole[0][3:]


def test_epochs_of_other_data(model, restart, tmp_path):
    """Without `data` whole epochs are repeated, for data that are the same in each."""
    batches = PackedBatches(DOCUMENTS, 5, 2)
    x = {name: np.concatenate([batches.batch(n)[name] for n in range(3)]) for name in ("Input-Token", "Reset")}

    def curve(folder, *more):
        seen = losses(*more)
        callbacks = [TrainingCheckpoint(tmp_path / folder), seen]
        restart()
        with pytest.raises(Stopped) if more else contextlib.nullcontext():
            model.fit(x, batch_size=2, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        return seen.steps

    once = curve("whole")
    assert len(once) == 9
    assert curve("stopped", 5) == once[:5]
    assert curve("stopped") == once[3:]


def test_another_training_is_refused(model, restart, tmp_path):
    """Another model, other data, other steps, a file that is damaged or foreign: nothing is taken over."""
    import keras

    restart()
    with pytest.raises(Stopped):
        train(model, tmp_path, losses(4))
    restart()
    held = [variable.numpy().tobytes() for variable in everything(model)]
    with pytest.raises(ValueError, match=r"of another training:\n  steps_per_epoch=5, now 4"):
        train(model, tmp_path, steps=4)
    with pytest.raises(ValueError, match="other data or settings: length=5, now 6"):
        train(model, tmp_path, length=6)
    other = new_model()
    other.compile(keras.optimizers.SGD())
    with pytest.raises(ValueError, match=r"(?s)optimizer=AdamW, now SGD\n  'optimizer/0000.*and \d+ more"):
        train(other, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="Delete it to go on from the one before"):
        train(model, tmp_path)
    for place in ({}, {"place": "{"}, {"place": '{"epoch": -1, "step": 0, "data": null, "random": {}}'}):
        own = {"format": FORMAT, "version": "1"} | place
        safetensors_file.write_safetensors(file, {"a": np.zeros(2, "float32")}, metadata=own)
        with pytest.raises(ValueError, match="in a training"):
            train(model, tmp_path)
    safetensors_file.write_safetensors(file, {"a": np.zeros(2, "float32")})
    with pytest.raises(ValueError, match="is no file of TrainingCheckpoint"):
        train(model, tmp_path)
    assert [variable.numpy().tobytes() for variable in everything(model)] == held


def test_an_epoch_that_another_callback_ends_is_not_whole(model, restart, tmp_path):
    import keras

    def end(batch, logs):
        model.stop_training = True

    restart()
    train(model, tmp_path, keras.callbacks.LambdaCallback(on_train_batch_end=end), every="epoch")
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "`every` is"),
        ({"every": 2}, "data must be found again"),
        ({"data": [1]}, "`data` is what `keras_dataset"),
        ({"keep": 0}, "`keep` is"),
    ],
)
def test_options(options, says):
    with pytest.raises(ValueError, match=says):
        TrainingCheckpoint("a", **options)


def test_the_steps_of_an_epoch_must_be_known(model):
    data = keras_dataset(PackedBatches(DOCUMENTS, 5, 2))
    with pytest.raises(ValueError, match="steps_per_epoch=len"):
        model.fit(data, verbose=0, callbacks=[TrainingCheckpoint("a", 1, data)])


def test_a_lone_callback_is_not_run_late(model, restart, tmp_path):
    """Where Keras would run it late, on JAX and PyTorch, that is an error; on TensorFlow it works."""
    from bert4keras_rwkv.ops import backend

    restart()
    late, data = backend.name() != "tensorflow", keras_dataset(PackedBatches(DOCUMENTS, 5, 2))
    callback = TrainingCheckpoint(tmp_path, 3, data)
    with pytest.raises(ValueError, match="Put it into a list") if late else contextlib.nullcontext():
        model.fit(data, steps_per_epoch=4, verbose=0, callbacks=callback)
    assert bool(list(tmp_path.iterdir())) != late


@pytest.mark.on("torch")
def test_killed(whole, tmp_path):
    """A process that SIGKILL ends at step 8, and the same program started again: the losses of one that ran through."""

    def run(name, at):
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "folder", tmp_path / name, str(at)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert run("first", 8).returncode == -signal.SIGKILL
    done = run("second", 0)
    assert done.returncode == 0, done.stderr
    first, second = (
        [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()] for name in ("first", "second")
    )
    assert first == whole[0][:8]
    assert second == whole[0][6:]
