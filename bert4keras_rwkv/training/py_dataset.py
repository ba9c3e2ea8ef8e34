"""`Batches` as Keras takes them."""

import keras


class BatchDataset(keras.utils.PyDataset):
    """`Batches` without end, from batch `start` on. One that has an end would be shuffled by `fit`."""

    def __init__(self, batches, start=0, **kwargs):
        super().__init__(**kwargs)
        self.batches, self.start = batches, start

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return (self.batches.batch(self.start + index),)
