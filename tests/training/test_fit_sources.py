"""`fit` takes the same batches from every source and loses the same, and compiles no more than there are lengths."""

import keras
import numpy as np
import pytest

from bert4keras_rwkv.models.loss_model import TokenLoss
from bert4keras_rwkv.training import recent_batches
from tests.models.small import scatter, small_model, texts

B, T, STEPS = 2, 7, 4
NAME = "Input-Token"


class Rows(keras.utils.PyDataset):
    """Batches with an end."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return ({NAME: self.batches[index]},)


def generator(batches):
    return (({NAME: batch},) for batch in batches)


def tf_data(batches):
    import tensorflow as tf

    width = T if len({batch.shape[1] for batch in batches}) == 1 else None
    signature = ({NAME: tf.TensorSpec((B, width), tf.int32)},)
    return tf.data.Dataset.from_generator(lambda: generator(batches), output_signature=signature)


def data_loader(batches):
    import torch

    def joined(rows):
        return ({NAME: torch.from_numpy(np.stack(rows))},)

    rows = [row for batch in batches for row in batch]
    return torch.utils.data.DataLoader(rows, batch_size=B, collate_fn=joined)


def tensors(batches):
    import torch

    data = torch.utils.data.TensorDataset(torch.from_numpy(np.concatenate(batches)))
    return torch.utils.data.DataLoader(data, batch_size=B)


def grain_data(batches):
    import grain

    rows = grain.MapDataset.source([{NAME: row} for batch in batches for row in batch])
    return rows.batch(B).map(lambda batch: (batch,)).to_iter_dataset()


SOURCES = {
    "NumPy arrays": np.concatenate,
    "generator": generator,
    "tf.data": tf_data,
    "DataLoader": data_loader,
    "DataLoader of tensors": tensors,
    "grain": grain_data,
    "PyDataset": Rows,
    "recent_batches": lambda batches: recent_batches(generator(batches)),
}


ONE_LENGTH = ["NumPy arrays", "DataLoader of tensors"]


def some(*quick, without=()):
    """The names of these sources, and of the others for the slow tests."""
    names = [name for name in SOURCES if name not in without]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def rwkv():
    return small_model(num_hidden_layers=1)


@pytest.fixture(scope="module")
def model(rwkv):
    trained = rwkv.training_model()
    trained.compile(keras.optimizers.SGD(0.1))
    return trained


@pytest.fixture
def traces(monkeypatch):
    """How often the model was traced, one entry each; without a graph, as on PyTorch, how often it ran."""
    found, call = [], TokenLoss.call

    def counted(self, ids, *others):
        found.append(tuple(ids.shape))
        return call(self, ids, *others)

    monkeypatch.setattr(TokenLoss, "call", counted)
    return found


def losses(rwkv, model, data):
    """The mean losses up to each step, from the same weights each time."""
    scatter(rwkv)
    found = []
    each = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: found.append(float(logs["loss"])))
    model.fit(data, batch_size=B, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=[each])
    return found


def by_hand(rwkv, model, batches):
    """The same from `train_on_batch`."""
    scatter(rwkv)
    found = []
    for batch in batches:
        model.reset_metrics()
        found.append(float(model.train_on_batch([batch])))
    return (np.cumsum(found) / np.arange(1, len(found) + 1)).tolist()


def check(rwkv, model, source, batches, traces):
    want = by_hand(rwkv, model, batches)
    assert len(set(want)) == STEPS
    del traces[:]
    assert losses(rwkv, model, source(batches)) == pytest.approx(want, rel=1e-5)
    lengths = {batch.shape for batch in batches}
    if keras.backend.backend() == "torch":
        assert len(traces) == STEPS
    else:
        assert len(traces) <= len(lengths)


@pytest.mark.parametrize("source", some("NumPy arrays", "generator", "DataLoader", "grain"))
def test_batches_of_one_length(rwkv, model, rng, source, traces):
    """1e-5: the same float32 sums, compiled anew by some sources."""
    check(rwkv, model, SOURCES[source], [texts(rng, B, T) for _ in range(STEPS)], traces)


@pytest.mark.parametrize("source", some("generator", without=ONE_LENGTH))
def test_batches_of_several_lengths(rwkv, model, rng, source, traces):
    check(rwkv, model, SOURCES[source], [texts(rng, B, length) for length in (T, 4, T, 4)], traces)


def test_another_length_may_come_late(rwkv, model, rng, traces):
    """Ours need not show all lengths in their first batches, which Keras takes for the rule on TensorFlow."""
    batches = [texts(rng, B, length) for length in (T, T, T, 4)]
    check(rwkv, model, SOURCES["recent_batches"], batches, traces)
