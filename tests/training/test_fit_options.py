"""The options of Keras' optimizers and models do with these models what they say; so does a program for bert4keras3."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.layers import Loss, NextTokenLoss
from bert4keras_rwkv.ops.cross_entropy import chunked_cross_entropy
from tests.models.small import scatter, small_model, texts

B, T = 4, 7


@pytest.fixture(scope="module")
def rwkv():
    return small_model(num_hidden_layers=1)


@pytest.fixture
def ids(rng):
    """Rows of the same number of real tokens, so that halves of a batch weigh the same."""
    ids = texts(rng, B, T)
    ids[ids == 0] = 1
    ids[:, :2] = 0
    return ids


def weights(model):
    return [np.array(ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


def fitted(rwkv, optimizer, ids, epochs=1, batch_size=B, callbacks=()):
    """A training model after `fit`, from the same weights each time."""
    scatter(rwkv)
    model = rwkv.training_model()
    model.compile(optimizer)
    model.fit(ids, epochs=epochs, batch_size=batch_size, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


@pytest.mark.slow
def test_accumulating_two_halves_is_one_batch(rwkv, ids):
    """To 1e-5 of the step: the mean of two float32 means."""
    scatter(rwkv)
    before = weights(rwkv.training_model())
    whole = weights(fitted(rwkv, keras.optimizers.SGD(0.1), ids))
    halves = weights(fitted(rwkv, keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), ids, batch_size=B // 2))
    size = max(np.abs(w - b).max() for w, b in zip(whole, before, strict=True))
    assert size > 1e-2
    for got, want in zip(halves, whole, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * size + 1e-7)


def test_clipping_and_averages(rwkv, ids):
    """With SGD at rate 1 a clipped step is as long as `global_clipnorm`; at the end stand the averages of all steps.

    1 %: TensorFlow counts an embedding's gradient by occurrence of its ids.
    """
    trail = []

    class Trail(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            trail.append(weights(self.model))

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                trail.append(weights(self.model))

    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=0.1, use_ema=True, ema_momentum=0.5)
    model = fitted(rwkv, optimizer, ids, epochs=3, callbacks=[Trail()])
    for before, after in itertools.pairwise(trail):
        moved = np.sqrt(sum(((a - b) ** 2).sum(dtype="float64") for a, b in zip(after, before, strict=True)))
        assert moved == pytest.approx(0.1, rel=1e-2)
    average = trail[1]  # Keras' average begins with the first step
    for step in trail[2:]:
        average = [0.5 * a + 0.5 * s for a, s in zip(average, step, strict=True)]
    for got, want in zip(weights(model), average, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_loses_about_the_same(rwkv, ids):
    """3 %: eight bits of mantissa. Weights stay float32, and three steps of Adam make the loss smaller."""
    scatter(rwkv)
    want = float(ops.convert_to_numpy(rwkv.training_model()([ids])))
    model = small_model(num_hidden_layers=1, dtype="mixed_bfloat16").training_model()
    model.compile(keras.optimizers.Adam(1e-2))
    losses = model.fit(ids, epochs=3, batch_size=B, shuffle=False, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(want, rel=0.03)
    assert losses[-1] < losses[0]
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


class CrossEntropy(Loss):
    """As in the guide of bert4keras3, on probabilities."""

    def compute_loss(self, inputs, mask=None):
        y_true, y_pred = inputs
        y_mask = ops.not_equal(y_true, 0)
        y_pred = ops.cast(y_pred, "float32")
        y_true = ops.cast(y_true, "float32")
        y_mask = ops.cast(y_mask, y_pred.dtype)
        y_true = y_true[:, 1:]
        y_mask = y_mask[:, 1:]
        y_pred = y_pred[:, :-1]
        loss = ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=False)
        loss = ops.sum(loss * y_mask, -1) / (ops.sum(y_mask, -1) + 1)
        return ops.mean(loss)


def test_a_program_for_bert4keras3(ids, rng):
    """Its first loss is what NumPy makes of the probabilities, and training lowers it."""
    rwkv = small_model(num_hidden_layers=1, with_lm="softmax", sequence_length=T)
    p = rwkv.model.predict(ids, verbose=0)
    output = CrossEntropy(-1, dtype="float32")(rwkv.model.inputs[:] + rwkv.model.outputs)
    model = keras.models.Model(rwkv.model.inputs, output)
    rate = keras.optimizers.schedules.CosineDecay(5e-3, 4)
    model.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=0.01, beta_2=0.95))
    losses = model.fit(ids, epochs=4, batch_size=B, shuffle=False, verbose=0).history["loss"]
    cost = -np.log(np.take_along_axis(p[:, :-1], ids[:, 1:, None], -1)[..., 0])
    real = ids[:, 1:] != 0
    assert losses[0] == pytest.approx(((cost * real).sum(-1) / (real.sum(-1) + 1)).mean(), rel=1e-4)
    assert losses[-1] < losses[0]


def test_ids_beyond_the_vocabulary_are_nan_where_they_count(rng):
    """On every backend alike: the loss is NaN, before the head and behind it; where they do not count nothing is."""
    V = 11
    hidden, kernel = rng.normal(size=(1, 3, 5)).astype("float32"), rng.normal(size=(5, V)).astype("float32")
    hidden, kernel = map(ops.convert_to_tensor, (hidden, kernel))
    for bad in (-1, V, 10**6):
        labels = ops.convert_to_tensor(np.array([[3, bad, 4]], "int32"))
        for weight, known in (([1, 1, 1], False), ([1, 0, 1], True)):
            total = chunked_cross_entropy(hidden, kernel, labels, ops.convert_to_tensor(np.array([weight], "float32")))
            assert np.isfinite(float(total)) == known
        loss = NextTokenLoss(pad_token_id=None)
        ids = ops.concatenate([labels[:, :1], labels], axis=1)
        logits = ops.zeros((1, 4, V))
        assert np.isnan(float(loss.compute_loss([ids, logits])))
        assert float(NextTokenLoss(pad_token_id=bad).compute_loss([ids, logits])) == pytest.approx(np.log(V))
