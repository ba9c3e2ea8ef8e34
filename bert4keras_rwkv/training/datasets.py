"""Data sets for `fit`, on every backend: `Batches`, or any iterable of batches, as Keras takes them."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.training.tf_data import tensorflow

adapters = keras.src.trainers.data_adapters


def keras_dataset(batches, start=0):
    """`Batches` as a `keras.utils.PyDataset` without end, from batch `start` on, in order.

    `fit(dataset, steps_per_epoch=len(batches), shuffle=False)`. To go on after an interruption use
    `callbacks.TrainingCheckpoint(folder, data=dataset)` or `data_position(dataset)`, or give as `start` the number of
    batches trained, or `batches.number_of(state)`.
    """
    return BatchDataset(batches, start)


def recent_batches(iterable, keep=32):
    """Any iterable of batches, such as a generator, a `DataLoader` or a `grain` or `tf.data` dataset, for `fit`.

    Like `keras_dataset` it has no end: `fit(dataset, steps_per_epoch=..., shuffle=False)`. An iterable that ends is
    begun again. The last `keep` batches are remembered, so that `callbacks.StopOnNaN(dataset)` can write the one that
    was at fault; TensorFlow reads some ahead. Each batch is a dict of inputs by name, an array, or a tuple
    (x [, y [, sample_weight]]).
    """
    return RecentBatches(iterable, keep)


def data_position(dataset):
    """A callback for `fit(keras_dataset(...))` that goes on with the data of the epoch that training goes on with.

    For `initial_epoch` and for Keras' BackupAndRestore, which stands before it in `callbacks`. The `steps_per_epoch`
    must be those of the run that was interrupted. Like Keras, it repeats an epoch of which only a part was trained.
    """
    return DataPosition(dataset)


class BatchDataset(keras.utils.PyDataset, adapters.data_adapter.DataAdapter):
    """`Batches` without end, from batch `start` on, in order.

    It has no end because `fit` shuffles one that has, and no workers because they begin anew in each epoch. It is its
    own adapter, which `fit` allows, because that of Keras refuses to begin an epoch after one that was cut short.
    """

    def __init__(self, batches, start=0):
        super().__init__()
        self.batches, self.start = batches, start
        self._adapter = adapters.py_dataset_adapter.PyDatasetAdapter(self)

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return (self.batches.batch(self.start + index),)

    def get_numpy_iterator(self):
        return self._adapter.get_numpy_iterator()

    def get_jax_iterator(self):
        return self._adapter.get_jax_iterator()

    def get_tf_dataset(self):
        """A `tf.data.Dataset`. Keras would take the lengths of the first two batches for those of all."""
        tf = tensorflow()
        signature = keras.tree.map_structure(lambda x: tf.TensorSpec(self._shape(x), x.dtype), self[0])
        return tf.data.Dataset.from_generator(self.get_numpy_iterator, output_signature=signature).prefetch(2)

    def _shape(self, array):
        """The shape that an input has in all batches, None where it varies."""
        varies = len(getattr(self.batches, "lengths", ())) > 1
        return (len(array), None) if varies else array.shape

    def get_torch_dataloader(self):
        return self._adapter.get_torch_dataloader()


class RecentBatches(BatchDataset):
    """An iterable of batches without end, the last `keep` of which are found again by their number."""

    def __init__(self, iterable, keep):
        super().__init__(None)
        self.iterable, self.keep = iterable, keep
        self._iterator, self._kept, self._next = iter(iterable), {}, 0

    def __getitem__(self, index):
        while self._next <= index:
            self._kept[self._next] = self._read()
            self._kept.pop(self._next - self.keep, None)
            self._next += 1
        if index not in self._kept:
            raise ValueError(
                f"Of {self._next} batches that were read, the last {self.keep} are remembered. Received: {index}. "
                "A data set of this kind serves one `fit`; ask for a larger `keep`, or make it anew."
            )
        return self._kept[index]

    def _shape(self, array):
        return (None,) * array.ndim

    def _read(self):
        """The next batch, a tuple of NumPy arrays; an iterable that ends is begun again."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.iterable)
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError("The iterable has ended, and cannot be begun again. Give one without end.") from None
        batch = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
        return keras.tree.map_structure(np.asarray, batch)


class DataPosition(keras.callbacks.Callback):
    """Begins a `BatchDataset` where the epoch that `fit` begins with needs it."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self._start, self._began = dataset, dataset.start, False

    def on_train_begin(self, logs=None):
        self._began = False

    def on_epoch_begin(self, epoch, logs=None):
        if not self._began:  # later epochs go on by themselves
            self.dataset.start = self._start + epoch * self.params["steps"]
        self._began = True
