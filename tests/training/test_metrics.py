"""Metrics are sums over all tokens of an epoch: what NumPy makes of the logits in float64, however batches are cut."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.training.metrics import BitsPerByte, Perplexity, TokenAccuracy, Tokens, token_sizes
from tests.models.small import small_model, texts

pytestmark = pytest.mark.once

BYTES = np.arange(40) % 5  # of each id
T = 9


def metrics(**options):
    return [
        Perplexity(**options),
        BitsPerByte(BYTES, **options),
        TokenAccuracy(**options),
        Tokens(**options),
    ]


def data(rng):
    """Rows of very different lengths, so that a mean of batch means is far from the mean."""
    ids = texts(rng, 5, T)
    ids[ids == 0] = 1
    ids[0, :6] = ids[3, 2:] = ids[4, :] = 0
    return ids


def truth(logits, labels, weights):
    """The four metrics from logits (B, T, V), in float64."""
    logits = logits.astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    nats, count = -(own * weights).sum(), weights.sum()
    hits = ((logits.argmax(-1) == labels) * weights).sum()
    size = (BYTES[labels] * weights).sum()
    return {
        "perplexity": np.exp(nats / count),
        "bits_per_byte": nats / np.log(2) / size,
        "token_accuracy": hits / count,
        "tokens": count,
    }


@pytest.fixture(scope="module")
def rwkv():
    return small_model(num_hidden_layers=1)


def logits_of(rwkv, ids):
    return ops.convert_to_numpy(rwkv.forward(ids, None, ids != 0)[0])


def test_metrics_of_a_training_model(rwkv, rng):
    """In `evaluate`, over batches of two rows, the last of them half full: 1e-4 of the truth, for float32 sums."""
    ids = data(rng)
    model = rwkv.training_model(accuracy=True)
    model.compile(keras.optimizers.SGD(0.0), metrics=metrics())
    got = model.evaluate(ids, batch_size=2, verbose=0, return_dict=True)
    real = ids != 0
    want = truth(logits_of(rwkv, ids)[:, :-1], ids[:, 1:], (real[:, 1:] & real[:, :-1]).astype("float64"))
    assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-4)
    assert abs(np.exp(got["loss"]) / want["perplexity"] - 1) > 0.01  # Keras' loss is the mean over batches
    fitted = model.fit(ids, batch_size=2, epochs=2, verbose=0, shuffle=False).history  # at rate 0
    assert {name: fitted[name] for name in want} == {name: pytest.approx([x, x], rel=1e-4) for name, x in want.items()}


def test_metrics_of_the_plain_way(rwkv, rng):
    """Behind `RWKV.model`, with sample weights, in training too."""
    ids = data(rng)
    model = rwkv.model
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, weighted_metrics=metrics(pad_token_id=0))
    x, y = ids[:, :-1], ids[:, 1:]
    weights = (rng.random(x.shape) * (x != 0)).astype("float32")
    got = model.fit(x, y, sample_weight=weights, batch_size=5, verbose=0, shuffle=False).history
    want = truth(logits_of(rwkv, x), y, weights * (y != 0))
    del want["tokens"]  # on PyTorch Keras multiplies the weights by a constant, in place, before metrics see them
    assert {name: got[name][0] for name in want} == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("weights", [None, 2.0, np.array([1.0, 0.0]), np.array([[1.0], [0.5]])])
def test_weights_of_any_shape(rng, weights):
    """None, a scalar, one a row; probabilities count as their logits do."""
    logits, labels = rng.normal(size=(2, 3, 40)).astype("float32"), texts(rng, 2, 3)
    broad = np.broadcast_to(1.0 if weights is None else np.reshape(weights, (-1, 1)), (2, 3))
    want = truth(logits, labels, broad)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for kind, predicted in ((True, logits), (False, p)):
        for metric in metrics(from_logits=kind):
            metric.update_state(labels, predicted, sample_weight=weights)
            assert float(metric.result()) == pytest.approx(want[metric.name], rel=1e-4)


def test_nothing_counted_is_no_nan():
    for metric, want in zip(metrics(pad_token_id=0), (1.0, 0.0, 0.0, 0.0), strict=True):
        metric.update_state(np.zeros((1, 2), "int32"), np.full((1, 2, 40), np.nan, "float32"))
        assert float(metric.result()) == want


def test_configs_come_back():
    for metric in metrics(pad_token_id=3, from_logits=False):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
        assert again.get_config() == metric.get_config() and type(again) is type(metric)


def test_accuracy_has_to_be_asked_for(rwkv, rng):
    model = rwkv.training_model()
    model.compile("sgd", metrics=[TokenAccuracy()])
    with pytest.raises(ValueError, match="accuracy=True"):
        model.evaluate(data(rng), verbose=0)


@pytest.mark.backend_free
def test_sizes_of_tokens():
    """The bytes of a text are those of its tokens; the end, and ids without text, have none."""
    from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

    entries = {i + 1: bytes([i]) for i in range(256)} | {300: b"three"}
    tokenizer = RWKV_TOKENIZER.from_entries(entries)
    sizes = token_sizes(tokenizer, 310)
    assert sizes.shape == (310,) and sizes[0] == sizes[299] == sizes[305] == 0
    ids = tokenizer.encode("three and 三")
    assert sizes[ids].sum() == len("three and 三".encode()) and 300 in ids
