"""`fit` takes every kind of data set on every backend, and `tf.data` gives what the documents hold."""

import numpy as np
import pytest

from bert4keras_rwkv.data.packing import padded, padding_moved_left
from bert4keras_rwkv.training import (
    BucketedBatches,
    Document,
    PackedBatches,
    data_position,
    keras_dataset,
    record_dataset,
    tf_dataset,
    write_records,
)
from bert4keras_rwkv.training.tf_data import padding_moved_left as moved_in_tf
from tests.models.small import small_model

SIZES = [5, 1, 7, 3, 6, 2, 7, 4]


@pytest.fixture
def documents(rng):
    """Document i, of SIZES[i] ids; some are 0 and no padding."""
    return [rng.integers(0, 3, size) for size in SIZES]


@pytest.fixture
def file(tmp_path, documents):
    write_records(tmp_path / "a.tfrecord", documents)
    return tmp_path / "a.tfrecord"


def elements(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


@pytest.mark.backend_free
@pytest.mark.parametrize("side", ["left", "right"])
def test_records_in_padded_batches(file, documents, side):
    """In the order of the file, again and again, at the smallest of the lengths; zeros that are tokens stay."""
    got = elements(record_dataset(file, 2, (4, 7), side), 6)
    for number, batch in enumerate(got):
        rows = [documents[(2 * number + b) % 8] for b in (0, 1)]
        width = 4 if max(map(len, rows)) <= 4 else 7
        assert list(batch) == ["Input-Token"] and batch["Input-Token"].dtype == np.int32
        np.testing.assert_array_equal(batch["Input-Token"], padded(rows, width, side))


@pytest.mark.backend_free
def test_records_without_lengths_and_cut(file, documents):
    """Without lengths the longest row decides, as in the original; longer rows than the longest length are cut."""
    whole, short = (elements(record_dataset(file, 3, lengths), 2) for lengths in (None, 4))
    for number, (one, other) in enumerate(zip(whole, short, strict=True)):
        rows = documents[3 * number : 3 * number + 3]
        np.testing.assert_array_equal(one["Input-Token"], padded(rows, max(map(len, rows))))
        np.testing.assert_array_equal(other["Input-Token"], padded([row[:4] for row in rows], 4))


@pytest.mark.backend_free
def test_shuffling_by_a_seed(file, documents):
    """The same seed gives the same order, another one another, and every record comes once an epoch."""

    def order(seed):
        batches = elements(record_dataset(file, 2, 7, shuffle=8, seed=seed, repeat=False, pad_token_id=-1), 9)
        return [tuple(row[row >= 0].tolist()) for batch in batches for row in batch["Input-Token"]]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2)) == sorted(tuple(one.tolist()) for one in documents)


@pytest.mark.backend_free
def test_answer_masks_of_records(tmp_path):
    """A record without one is all answer."""
    write_records(tmp_path / "a", [Document(np.array([4, 5, 6]), np.array([0, 1, 1])), [7, 8]])
    (batch,) = elements(record_dataset(tmp_path / "a", 2, 4, answer_mask=True), 1)
    assert batch["Answer-Mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.backend_free
def test_padding_moves_in_tf_as_in_numpy(rng):
    rows, sizes = rng.integers(0, 9, (5, 7)), np.array([0, 1, 3, 6, 7])
    moved = moved_in_tf(rows.astype("int32"), sizes.astype("int32")).numpy()
    np.testing.assert_array_equal(moved, padding_moved_left(rows, sizes))


@pytest.mark.backend_free
def test_bad_records_are_named_before_training(tmp_path, file):
    with pytest.raises(ValueError, match="8 records in 1 files, and a batch has 9"):
        record_dataset(file, 9)
    write_records(tmp_path / "b", [[1], [2, 32]])
    with pytest.raises(ValueError, match=r"b', record 1: id 32 at position 1 .* 0 \.\. 31"):
        record_dataset([file, tmp_path / "b"], 2, vocab_size=32)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.tfrecord', record 7"):
        record_dataset(file, 2)


@pytest.mark.backend_free
@pytest.mark.parametrize("kind", [lambda d: PackedBatches(d, 5, 2, 4), lambda d: BucketedBatches(d, (4, 7), 2, 4)])
def test_tf_data_of_batches(documents, kind):
    """The same batches, from any of them on."""
    batches = kind(documents)
    for number, got in enumerate(elements(tf_dataset(batches, 3), 4), 3):
        for name, ids in batches.batch(number).items():
            np.testing.assert_array_equal(got[name], ids)


def trained(model, dataset, steps=6):
    """The losses of epochs of two steps."""
    return model.fit(dataset, epochs=steps // 2, steps_per_epoch=2, verbose=0, shuffle=False).history["loss"]


@pytest.fixture(scope="module")
def models():
    """Small models that train, by `packed`; they compile once for all tests."""
    from keras import optimizers

    found = {packed: small_model(packed=packed, num_hidden_layers=1).training_model() for packed in (False, True)}
    for model in found.values():
        model.compile(optimizers.Adam(1e-2))
        model.optimizer.build(model.trainable_variables)
    return found


@pytest.mark.parametrize("packed", [False, True])
def test_fit_takes_it(file, models, packed):
    """From `tf.data` and from Keras: losses are finite and fall, and the inputs find their way by name."""
    documents = [np.tile([3, 4, 5, 6], 2)[:size] for size in SIZES]
    write_records(file, documents)
    if packed:
        batches = PackedBatches(documents, 7, 2)
        datasets = tf_dataset(batches), keras_dataset(batches)
    else:
        datasets = record_dataset(file, 2, 7, shuffle=8), keras_dataset(BucketedBatches(documents, 7, 2))
    losses = [loss for dataset in datasets for loss in trained(models[packed], dataset)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_training_goes_on_with_the_data_that_come_next(documents, models):
    """Six steps in one run end where two runs of two and four steps end, to the bit; and the order does matter."""
    batches, model = PackedBatches(documents, 7, 2), models[True]
    variables = model.variables + model.optimizer.variables
    begin = [variable.numpy().copy() for variable in variables]

    def ends(*runs):
        for variable, value in zip(variables, begin, strict=True):
            variable.assign(value)
        first = int(model.optimizer.iterations)
        for start, steps in runs:
            trained(model, keras_dataset(batches, start), steps)
        assert int(model.optimizer.iterations) - first == sum(steps for _, steps in runs)
        return [weight.tobytes() for weight in model.get_weights()]

    assert ends((0, 6)) == ends((0, 2), (2, 4)) != ends((0, 2), (0, 4))


class Stopped(Exception):
    """Stands for what ends a process."""


def test_backup_and_restore_finds_the_data(documents, models, tmp_path):
    """A run that is stopped in its third epoch and started again ends where an uninterrupted one ends, to the bit."""
    import keras

    batches, model = PackedBatches(documents, 7, 2), models[True]
    variables = model.variables + model.optimizer.variables
    begin = [variable.numpy().copy() for variable in variables]

    def start_again():
        for variable, value in zip(variables, begin, strict=True):
            variable.assign(value)

    def stop(epoch, logs):
        if epoch == 2:
            raise Stopped

    def fit(*callbacks):
        dataset = keras_dataset(batches)
        callbacks = [*callbacks, data_position(dataset)]
        model.fit(dataset, epochs=4, steps_per_epoch=1, verbose=0, shuffle=False, callbacks=callbacks)
        return [weight.tobytes() for weight in model.get_weights()]

    start_again()
    whole = fit()
    start_again()
    with pytest.raises(Stopped):
        fit(
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.LambdaCallback(on_epoch_begin=stop),
        )
    start_again()
    assert fit(keras.callbacks.BackupAndRestore(tmp_path / "backup")) == whole
