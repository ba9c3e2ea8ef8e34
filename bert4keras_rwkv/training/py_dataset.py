"""`Batches` as Keras takes them."""

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.training.pipeline import tensorflow

adapters = keras.src.trainers.data_adapters


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
