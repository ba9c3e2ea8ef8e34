"""State tuning: only the initial state trains, on every backend, and every way of reading begins in it."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.layers import NextTokenLoss
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import open_weights
from tests.gradients import BACKEND
from tests.models.small import LAWFUL, arrays, assert_close, lawful, small_model, texts

pytestmark = pytest.mark.once


@contextlib.contextmanager
def double_precision():
    """JAX computes in float64 only when told."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def random_state(rwkv, rng, shift=True):
    """A state of one row for a model."""
    shapes = RWKVState.shapes(rwkv.config)
    wkv, last = (rng.standard_normal((1, *shape)).astype("float32") for shape in shapes)
    if rwkv.config.num_attention_heads is None:
        wkv[:, :, 1], wkv[:, :, 2] = np.abs(wkv[:, :, 1]), 0
    return RWKVState(wkv, last * shift, rwkv.config.model)


@pytest.mark.parametrize(
    ("version", "shift"),
    [pytest.param(v, True, marks=() if v == "7" else pytest.mark.on("torch")) for v in LAWFUL[:4]]
    + [pytest.param("6", False, marks=pytest.mark.on("torch"))]
    + [pytest.param(version, False, marks=pytest.mark.slow) for version in ("4", "5.2", "7")],
)
def test_only_states_train_and_the_loss_falls(version, shift, rng):
    """Base weights are what they were, bit for bit; every part of the state has moved."""
    rwkv, ids = small_model(version), texts(rng, 4, 16)
    before = {name: np.array(array) for name, array in rwkv.weights().items()}
    rwkv.enable_state_tuning(time_shift_tuning=shift)
    model = rwkv.training_model(NextTokenLoss(pad_token_id=None))
    layers = rwkv.config.num_hidden_layers
    each = (2 if version == "4" else 1) + 2 * shift
    assert len(model.trainable_variables) == each * layers
    model.compile(keras.optimizers.Adam(0.05))
    losses = model.fit(ids, epochs=4, batch_size=4, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for name, array in rwkv.weights().items():
        np.testing.assert_array_equal(array, before[name])
    assert all(ops.convert_to_numpy(variable).any() for variable in model.trainable_variables)


@pytest.mark.parametrize("version", lawful("7"))
def test_every_way_of_reading_begins_in_the_tuned_state(version, rng):
    """The tuned state is what the same state is when given: forward, the Keras model, writing, a cache model."""
    rwkv, ids = small_model(version, mask_output=[0], temperature=0.0), texts(rng, 2, 10)
    ids[ids == 0] = 1
    state = random_state(rwkv, rng)
    untuned, want = arrays(*rwkv.forward(ids)), arrays(*rwkv.forward(ids, state))
    rwkv.enable_state_tuning(time_shift_tuning=True)
    rwkv.set_tuned_state(state)
    written = rwkv.generate(ids[0], 20, state=state, stop_token_ids=None)
    assert_close(arrays(*rwkv.forward(ids)), want, bar=1e-6)
    assert_close([rwkv.model.predict(ids, verbose=0)], want[:1])
    assert rwkv.generate(ids[0], 20, stop_token_ids=None) == written
    buffer = np.zeros((1, 20), "int32")
    buffer[0, :10] = ids[0]
    assert rwkv.build_cache_model([20], None).predict(buffer, verbose=0)[0].tolist() == written
    zero = RWKVState.zeros(rwkv.config)
    assert_close(arrays(*rwkv.forward(ids, zero)), untuned, bar=1e-6)


@pytest.mark.parametrize("version", lawful("4", "7"))
def test_documents_begin_in_the_tuned_state(version, rng):
    """Packed documents are documents alone, each from the tuned state."""
    rwkv = small_model(version, packed=True)
    rwkv.enable_state_tuning(time_shift_tuning=True)
    rwkv.set_tuned_state(random_state(rwkv, rng))
    ids, reset = texts(rng, 1, 24), np.zeros((1, 24), "int32")
    reset[0, [0, 9, 10]] = 1
    got = rwkv.model.predict([ids, reset], verbose=0)
    want = [ops.convert_to_numpy(rwkv.forward(part[None])[0]) for part in np.split(ids[0], [9, 10])]
    assert_close([got], [np.concatenate(want, 1)])


def loss_and_slopes(model, ids):
    """A function that gives the loss for the present values of the variables, and d loss / d each trainable variable,
    as NumPy, on whichever backend runs.
    """
    if BACKEND == "jax":
        import jax

        def of_values(values):
            return model.stateless_call(values, [v.value for v in model.non_trainable_variables], [ids])[0]

        def loss():
            return compiled([v.value for v in model.trainable_variables])

        compiled, slopes = jax.jit(of_values), jax.jit(jax.grad(of_values))
        found = slopes([v.value for v in model.trainable_variables])
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        loss = tf.function(lambda: model([ids]), autograph=False)
        with tf.GradientTape() as tape:
            value = loss()
        found = tape.gradient(value, [v.value for v in model.trainable_variables])
    else:

        def loss():
            return model([ids])

        loss().backward()
        found = [v.value.grad for v in model.trainable_variables]
    return lambda: float(ops.convert_to_numpy(loss())), [ops.convert_to_numpy(g) for g in found]


@pytest.mark.parametrize("version", lawful("6"))
def test_gradients_are_slopes(version, rng):
    """Of every state along a random direction: 1e-6 of central differences in float64 on TensorFlow. On the others some
    operations of Keras give float32 for float64 (a mean, on torch a product), so differences are wide: 1e-2.
    """
    width, bar = (1e-5, 1e-6) if BACKEND == "tensorflow" else (1e-2, 1e-2)
    with double_precision():
        rwkv, ids = small_model(version, dtype="float64"), texts(rng, 2, 9)
        rwkv.enable_state_tuning(time_shift_tuning=True)
        rwkv.set_tuned_state(random_state(rwkv, rng))
        model = rwkv.training_model(NextTokenLoss(pad_token_id=None, dtype="float64"))
        value, slopes = loss_and_slopes(model, ids)
        for variable, slope in zip(model.trainable_variables, slopes, strict=True):
            middle, direction = ops.convert_to_numpy(variable).copy(), rng.standard_normal(slope.shape)
            around = []
            for h in (width, -width):
                variable.assign(middle + h * direction)
                around.append(value())
            variable.assign(middle)
            assert (around[0] - around[1]) / (2 * width) == pytest.approx(np.sum(slope * direction), rel=bar, abs=1e-9)


def test_weights_saved_by_keras_are_read_without_the_state(tmp_path, rng):
    rwkv = small_model()
    rwkv.enable_state_tuning()
    rwkv.model.save_weights(tmp_path / "a.weights.h5")
    with open_weights(tmp_path / "a.weights.h5", rwkv.config) as tensors:
        for name, array in rwkv.weights().items():
            np.testing.assert_array_equal(tensors[name], array)


def test_state_there_and_back(rng):
    rwkv = small_model()
    rwkv.enable_state_tunig(time_shitf_tuning=True)
    state = random_state(rwkv, rng)
    rwkv.set_tuned_state(state)
    assert_close([rwkv.tuned_state().wkv, rwkv.tuned_state().shift], [state.wkv, state.shift], bar=0)


def test_a_state_of_the_fourth_version_with_another_maximum(rng):
    """It is the same state when its maximum is put at 0."""
    rwkv, ids = small_model("4"), texts(rng, 1, 8)
    state = random_state(rwkv, rng)
    raised = RWKVState(state.wkv.copy(), state.shift, state.model)
    raised.wkv[:, :, 2] = 0.7
    want = arrays(*rwkv.forward(ids, raised))
    rwkv.enable_state_tuning(time_shift_tuning=True)
    rwkv.set_tuned_state(raised)
    got = arrays(*rwkv.forward(ids))
    assert_close(got[:1] + got[2:], want[:1] + want[2:])


@pytest.mark.parametrize(
    "misuse, message",
    [
        (lambda r, rng: r.tuned_state(), "no tuned state"),
        (lambda r, rng: (r.enable_state_tuning(), r.enable_state_tuning()), "on already"),
        (lambda r, rng: (r.enable_state_tuning(), r.set_tuned_state(random_state(r, rng))), "time_shift_tuning=True"),
        (lambda r, rng: (r.enable_state_tuning(), r.set_tuned_state(r.forward([[1], [2]])[1])), "one row of rwkv6"),
    ],
)
def test_misuse_is_told(misuse, message, rng):
    with pytest.raises(ValueError, match=message):
        misuse(small_model(), rng)
