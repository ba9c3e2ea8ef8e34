"""Callbacks see what training does, and leave no trace where they say so."""

import re
import warnings

import keras
import numpy as np
import pytest

from bert4keras_rwkv.training import PackedBatches, keras_dataset, recent_batches
from bert4keras_rwkv.training.callbacks import LearningRateFinder, StopOnNaN, TokensPerSecond
from bert4keras_rwkv.training.metrics import Tokens
from tests.models.small import scatter, small_model, texts

pytestmark = pytest.mark.once

T = 7


@pytest.fixture(scope="module")
def rwkv():
    return small_model(packed=True, num_hidden_layers=1)


@pytest.fixture(scope="module")
def trained(rwkv):
    """A training model that every test of this file compiles once and fits."""
    model = rwkv.training_model()
    model.compile(keras.optimizers.Adam(1e-2), metrics=[Tokens()])
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(autouse=True)
def as_at_first(rwkv, trained):
    scatter(rwkv)
    for variable in trained.optimizer.variables:
        variable.assign(np.zeros(variable.shape))
    trained.optimizer.learning_rate = 1e-2


def packed():
    """Batches of two rows over 6 texts that repeat themselves."""
    return PackedBatches([np.tile([3, 4, 5, 6], 4)] * 6, T, 2)


def fit(model, data, callbacks, steps=4, epochs=1):
    return model.fit(
        data, steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    ).history


def values(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(v))) for v in variables]


def test_the_finder_undoes_what_it_did(trained, tmp_path):
    """Weights and optimizer to the bit; rates grow evenly; losses are those of single steps."""
    before = values(trained)
    batches = packed()
    first = float(trained.evaluate(*keras_dataset(batches)[0], verbose=0)[0])
    finder = LearningRateFinder(1e-4, 10.0, steps=30, smoothing=0.5)
    fit(trained, keras_dataset(batches), [finder], steps=30)
    for now, then in zip(values(trained), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert len(finder.rates) == len(finder.losses) == len(finder.smoothed) <= 30
    np.testing.assert_allclose(np.diff(np.log(finder.rates)), np.log(1e5) / 29, rtol=1e-5)
    assert finder.losses[0] == finder.smoothed[0] == pytest.approx(first, rel=1e-5)
    assert finder.rates[0] < finder.suggestion * 10 < finder.rates[-1]
    assert min(finder.losses) < 0.9 * first  # it did train
    finder.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"


def test_the_finder_says_what_it_cannot_do(trained):
    finder = LearningRateFinder(1e-4, 1.0, steps=5)
    with pytest.raises(ValueError, match=r"never fell between the rates 0\.0001 and 1\.0"):
        _ = finder.suggestion
    for bad in ({"lowest": 1.0, "highest": 0.1}, {"steps": 1}, {"smoothing": 1.0}):
        with pytest.raises(ValueError, match="Received"):
            LearningRateFinder(**bad)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 5)), "mse")
    with pytest.raises(ValueError, match="with a number in place of the schedule"):
        model.fit(np.zeros((2, 1)), np.zeros(2), verbose=0, callbacks=[finder])


def rows(bad=3):
    """Batches without end, whose number `bad` is negative."""
    n = 0
    while True:
        yield np.full((2, 1), -1.0 if n == bad else 2.0 + n, "float32"), np.ones((2, 1), "float32")
        n += 1


@pytest.fixture
def plain():
    """It ends in a logarithm: of a batch of negative numbers the loss is NaN."""
    inner = keras.layers.Dense(1, kernel_initializer="ones", name="inner")
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Lambda(keras.ops.log, name="log")(inner(inputs)))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    model.inner = inner
    return model


@pytest.mark.parametrize("steps", [2, 5])
def test_nan_stops_with_step_layer_and_batch(plain, tmp_path, steps):
    """In any epoch; the weights are those of before the step."""
    data = recent_batches(rows())
    kernels = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            kernels.append(np.array(keras.ops.convert_to_numpy(self.model.inner.kernel)))

    with pytest.raises(FloatingPointError, match=r"Step 3 of this `fit` .* the loss is nan\. .* is 'log'\."):
        fit(plain, data, [Keep(), StopOnNaN(data, tmp_path / "bad")], steps=steps, epochs=3)
    with np.load(tmp_path / "bad/step-3.npz") as saved:
        assert sorted(saved) == ["x", "y"] and (saved["x"] == -1).all()
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(plain.inner.kernel), kernels[3])
    assert [file.name for file in (tmp_path / "bad").iterdir()] == ["step-3.npz"]


def test_told_otherwise_training_goes_on(plain, tmp_path):
    """It warns, and ends where training on the other batches ends."""
    start = values(plain)
    data = recent_batches(rows())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        history = fit(plain, data, [StopOnNaN(data, tmp_path, stop=False)], steps=6)
    (one,) = [text for text in (str(warning.message) for warning in said) if text.startswith("Step")]
    assert re.search(r"Step 3 .* The step is taken back", one)
    assert np.isfinite(history["loss"]).all()
    got = values(plain)
    for variable, value in zip([*plain.variables, *plain.optimizer.variables], start, strict=True):
        variable.assign(value)
    others = (batch for n, batch in enumerate(rows()) if n != 3)
    fit(plain, recent_batches(others), [], steps=5)
    for now, want in zip(got, values(plain), strict=True):
        np.testing.assert_array_equal(now, want)


def test_without_data_it_says_what_is_lost(plain):
    with pytest.raises(FloatingPointError, match=r"the loss is nan.*nearest to the loss that of '.*bias'.*Give `data`"):
        fit(plain, recent_batches(rows(0)), [StopOnNaN()])
    with pytest.raises(ValueError, match="`data` is a PyDataset"):
        StopOnNaN(rows())


def test_the_layer_of_a_language_model(rwkv, trained, tmp_path):
    """The innermost layer of the block in which an infinite weight stands, and the batch of `keras_dataset`."""
    batches = packed()
    data = keras_dataset(batches, start=2)
    kernel = rwkv.backbone.blocks[0].channel_mix.key.kernel
    value = np.array(keras.ops.convert_to_numpy(kernel))
    value[0, 0] = np.nan
    kernel.assign(value)
    with pytest.raises(FloatingPointError, match=r"Step 0 .* is '.*channel_mix/key'"):
        fit(trained, data, [StopOnNaN(data, tmp_path)])
    with np.load(tmp_path / "step-0.npz") as saved:
        for name, ids in batches.batch(2).items():
            np.testing.assert_array_equal(saved[f"x.{name}"], ids)


def test_recent_batches_are_found_again(rng):
    """By their number, as long as they are kept; what ends is begun again, what cannot be says so."""
    arrays = [texts(rng, 1, 3) for _ in range(4)]
    data = recent_batches(arrays, keep=3)
    assert [data[n][0].tolist() for n in range(6)] == [arrays[n % 4].tolist() for n in range(6)]
    assert data[3][0].tolist() == arrays[3].tolist()
    with pytest.raises(ValueError, match=r"the last 3 are remembered\. Received: 2"):
        data[2]
    with pytest.raises(ValueError, match="cannot be begun again"):
        recent_batches(iter(arrays))[4]


def test_tokens_per_second(trained, monkeypatch):
    """Tokens over seconds, without the first step and without validation, by a clock that a callback turns."""
    from bert4keras_rwkv.training.callbacks import speed

    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def turn(batch, logs=None):
        now[0] += 10.0 if batch == 0 else 0.5

    clock = keras.callbacks.LambdaCallback(
        on_train_batch_begin=turn, on_test_end=lambda logs: now.__setitem__(0, now[0] + 100)
    )
    batches = packed()
    data, validation = keras_dataset(batches), keras_dataset(batches)[0]
    counted, given = TokensPerSecond(), TokensPerSecond(2 * T)
    history = trained.fit(
        data,
        steps_per_epoch=3,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        callbacks=[clock, counted, given],
    ).history
    assert history["tokens_per_second"] == [2 * 2 * T / 1.0, 3 * 2 * T / 11.0]
    assert counted._result == pytest.approx((history["tokens"][1]) / 11.0)


def test_tokens_have_to_be_counted(plain):
    with pytest.raises(ValueError, match=r"metrics=\[Tokens\(\)\]"):
        fit(plain, recent_batches(rows(99)), [TokensPerSecond()])
