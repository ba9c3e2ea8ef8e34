"""State tuning: only the initial state trains, on every backend, and every way of reading begins in it."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.layers import NextTokenLoss
from bert4keras_rwkv.state import RWKVState
from tests.models.small import LAWFUL, arrays, assert_close, small_model, texts


def random_state(rwkv, rng, shift=True):
    """A state of one row for a model."""
    shapes = RWKVState.shapes(rwkv.config)
    wkv, last = (rng.standard_normal((1, *shape)).astype("float32") for shape in shapes)
    if rwkv.config.num_attention_heads is None:
        wkv[:, :, 1], wkv[:, :, 2] = np.abs(wkv[:, :, 1]), 0
    return RWKVState(wkv, last * shift, rwkv.config.model)


@pytest.mark.parametrize("version", LAWFUL)
@pytest.mark.parametrize("shift", [False, True])
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


@pytest.mark.parametrize("version", LAWFUL)
def test_every_way_of_reading_begins_in_the_tuned_state(version, rng):
    """The tuned state is what the same state is when given: forward, the Keras model, writing, a cache model."""
    rwkv, ids = small_model(version, mask_output=[0], temperature=0.0), texts(rng, 2, 10)
    ids[ids == 0] = 1
    state = random_state(rwkv, rng)
    want = arrays(*rwkv.forward(ids, state))
    written = rwkv.generate(ids[0], 20, state=state, stop_token_ids=None)
    rwkv.enable_state_tuning(time_shift_tuning=True)
    rwkv.set_tuned_state(state)
    assert_close(arrays(*rwkv.forward(ids)), want, bar=1e-6)
    assert_close([rwkv.model.predict(ids, verbose=0)], want[:1])
    assert rwkv.generate(ids[0], 20, stop_token_ids=None) == written
    buffer = np.zeros((1, 20), "int32")
    buffer[0, :10] = ids[0]
    assert rwkv.build_cache_model([20], None).predict(buffer, verbose=0)[0].tolist() == written
    zero = RWKVState.zeros(rwkv.config)
    assert_close(arrays(*rwkv.forward(ids, zero)), arrays(*small_model(version).forward(ids)), bar=1e-6)


@pytest.mark.parametrize("version", LAWFUL)
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
