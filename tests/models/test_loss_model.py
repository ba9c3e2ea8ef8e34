"""What `fit` makes smaller is the cross-entropy of the next real token, however it is computed."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.layers import Loss, NextTokenLoss
from bert4keras_rwkv.layers.losses import each_token
from bert4keras_rwkv.training.metrics import Perplexity, Tokens
from tests.gradients import quick
from tests.models.small import small_model, texts

pytestmark = pytest.mark.once

B, T = 3, 20


def padded(rng, batch=B):
    """Ids with padding on the left of the second row and on the right of the third."""
    ids = texts(rng, batch, T)
    ids[ids == 0] = 1
    ids[1, :5] = ids[2, 13:] = 0
    return ids


def value(model, *inputs):
    """The scalar that a model gives, as a float."""
    return float(ops.convert_to_numpy(quick(lambda *inputs: model([*inputs]))(*inputs)))


def truth(rwkv, ids, answer=None):
    """The mean cross-entropy from the logits of `forward`, in float64."""
    present = ids != 0
    logits = ops.convert_to_numpy(rwkv.forward(ids, None, present)[0]).astype("float64")[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counts = present[:, 1:] & present[:, :-1]
    if answer is not None:
        counts &= answer[:, 1:] != 0
    cost = -np.take_along_axis(log_p, ids[:, 1:, None], -1)[..., 0]
    return cost[counts].mean()


def test_loss_of_a_training_model(rng):
    """1e-5 of the logits' own cross-entropy, padding and answers that do not count left out."""
    rwkv, ids = small_model(num_hidden_layers=1), padded(rng)
    assert value(rwkv.training_model(), ids) == pytest.approx(truth(rwkv, ids), rel=1e-5)
    answer = (rng.random((B, T)) < 0.5).astype("int32")
    model = rwkv.training_model(NextTokenLoss(chunk_len=7, answer_mask=True))
    assert [x.name for x in model.inputs] == ["Input-Token", "Answer-Mask"]
    assert value(model, ids, answer) == pytest.approx(truth(rwkv, ids, answer), rel=1e-5)


def test_loss_of_packed_documents(rng):
    """Documents in one row count as documents alone; nothing is predicted across a border."""
    rwkv = small_model(packed=True, num_hidden_layers=1)
    ids, reset = texts(rng, 1, T), np.zeros((1, T), "int32")
    reset[0, [0, 8]] = 1
    got = value(rwkv.training_model(), ids, reset)
    parts = [ids[:, :8], ids[:, 8:]]
    costs = []
    for part in parts:
        logits = ops.convert_to_numpy(rwkv.forward(part)[0]).astype("float64")[0, :-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        costs.append(-log_p[np.arange(len(log_p)), part[0, 1:]])
    assert got == pytest.approx(np.concatenate(costs).mean(), rel=1e-5)


class Plain(Loss):
    """A loss as written for bert4keras3."""

    def compute_loss(self, inputs, mask=None):
        ids, logits = inputs
        real = ops.cast(ops.not_equal(ids, 0), "float32")
        weights = real[:, 1:] * real[:, :-1]
        cost = ops.sparse_categorical_crossentropy(ids[:, 1:], logits[:, :-1], from_logits=True)
        return ops.sum(cost * weights) / ops.sum(weights)


@pytest.mark.on("torch")
def test_every_way_trains_alike(rng):
    """Three steps of SGD end at the same weights as three steps on a loss of one's own: to 1e-4 of the largest, for
    float32 sums in another order, three times.
    """
    ids = padded(rng)

    def trained(loss):
        rwkv = small_model()
        model = rwkv.training_model()
        if loss is not None:
            model = keras.Model(rwkv.model.inputs, loss([*rwkv.model.inputs, *rwkv.model.outputs]))
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(ids, epochs=3, batch_size=B, verbose=0, shuffle=False)
        return {name: rwkv.weights()[name] for name in ("emb.weight", "head.weight", "blocks.1.att.key.weight")}

    before, want = small_model().weights(), trained(Plain(-1))
    for got in (trained(None), trained(NextTokenLoss())):
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, atol=1e-4 * np.abs(array).max())
            assert np.abs(array - before[name]).max() > 1e-3 * np.abs(array).max()


@pytest.mark.on("torch")
def test_inputs_by_name_and_generators(rng):
    """`{'Input-Token': ids}` from a generator, as a data set gives it."""
    rwkv, ids = small_model(num_hidden_layers=1), padded(rng)
    model = rwkv.training_model()
    model.compile(keras.optimizers.Adam(1e-2))
    losses = model.fit(
        (({"Input-Token": ids},) for _ in range(8)), steps_per_epoch=4, epochs=2, shuffle=False, verbose=0
    )
    assert losses.history["loss"][1] < losses.history["loss"][0]


def test_a_batch_of_padding_costs_nothing(rng):
    """Loss 0, and weights that stay as they are."""
    rwkv = small_model(num_hidden_layers=1)
    model = rwkv.training_model()
    model.compile(keras.optimizers.SGD(0.1))
    before = {name: array.copy() for name, array in rwkv.weights().items()}
    assert model.train_on_batch([np.zeros((2, 6), "int32")]) == 0
    for name, array in rwkv.weights().items():
        np.testing.assert_array_equal(array, before[name])


def weighted_truth(rwkv, ids, weights):
    """The weighted mean cross-entropy of `forward`; weights: (B, T), of each token."""
    logits = ops.convert_to_numpy(rwkv.forward(ids, None, ids != 0)[0]).astype("float64")[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = (weights * (ids != 0))[:, 1:] * (ids != 0)[:, :-1]
    return np.sum(-np.take_along_axis(log_p, ids[:, 1:, None], -1)[..., 0] * weights) / weights.sum()


def test_sample_weights(rng):
    """Of texts and of tokens: the loss is the weighted mean, in `evaluate` and in training, and so are the metrics; 0
    leaves out. 1e-5: float32 sums.
    """
    rwkv, ids = small_model(num_hidden_layers=1), padded(rng)
    model = rwkv.training_model(accuracy=True)
    eager = keras.config.backend() == "tensorflow"  # where the graph would take longer
    model.compile(keras.optimizers.SGD(0.0), metrics=[Perplexity(), Tokens()], run_eagerly=eager)
    texts_alone, each = np.array([1.0, 0.0, 0.5], "float32"), rng.random((B, T)).astype("float32")
    got = model.test_on_batch([ids], sample_weight=each, return_dict=True)
    want = weighted_truth(rwkv, ids, each)
    assert (got["loss"], got["perplexity"]) == pytest.approx((want, np.exp(want)), rel=1e-5)
    want = weighted_truth(rwkv, ids, texts_alone[:, None] * np.ones((B, T)))
    options = {"sample_weight": texts_alone, "batch_size": B, "verbose": 0}
    assert model.evaluate(ids, **options)[0] == pytest.approx(want, rel=1e-5)
    data = (ids, None, texts_alone)
    history = model.fit(ids, **options, validation_data=data).history
    assert [history["loss"][0], history["val_loss"][0]] == pytest.approx([want, want], rel=1e-5)


def test_weights_of_each_token():
    ids = np.zeros((2, 3), "int32")
    for weights in ([0.5, 2], [[0.5], [2]], [[0.5] * 3, [2] * 3]):
        got = ops.convert_to_numpy(each_token(ops.convert_to_tensor(np.float32(weights)), ids))
        assert got.tolist() == [[0.5] * 3, [2] * 3]
    with pytest.raises(ValueError, match=r"for each token, \(B, 3\)"):
        each_token(np.ones((2, 4), "float32"), ids)


def test_save_and_load(tmp_path, rng):
    """A `.keras` file of a training model gives the same loss."""
    rwkv, ids = small_model(num_hidden_layers=1), padded(rng)
    model = rwkv.training_model(NextTokenLoss(chunk_len=5))
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert value(again, ids) == pytest.approx(value(model, ids), rel=1e-6)


def test_another_loss_is_told_where_it_goes():
    with pytest.raises(ValueError, match=r"goes behind `RWKV\.model`"):
        small_model(num_hidden_layers=1).training_model(Plain())
    with pytest.raises(ValueError, match="how many tokens have logits"):
        NextTokenLoss(chunk_len=0)
