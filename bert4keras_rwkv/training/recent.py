"""Any iterable of batches as Keras takes it, whose last batches are remembered."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.training.py_dataset import BatchDataset


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
