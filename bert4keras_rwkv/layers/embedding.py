"""Vectors of ids, which may be stored in fewer bytes than they are computed with."""

import ml_dtypes
import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.projection import Watched, lora_of, quantised_as

ROWS = 1 << 10  # compared at a time


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Embedding(Watched, keras.layers.Embedding):
    """Keras' Embedding. scheme: None, or the `Scheme` of 16 bits: its numbers are stored in bfloat16, and do not train.

    What is looked up is cast, so of numbers that bfloat16 has the answers are the same, bit for bit.
    """

    scheme = None

    def pack_as(self, scheme, arrays=None):
        """Store the numbers in bfloat16, rounded. Of a layer that is not built yet: they will be when it is."""
        self.check_packing()
        self.scheme = scheme
        if not self.built:
            return
        numbers = ops.convert_to_numpy(self._embeddings)
        self._tracker.unlock()
        self._untrack_variable(self._embeddings)
        self._add_packed()
        self._tracker.lock()
        self._embeddings.assign(numbers.astype(ml_dtypes.bfloat16))
        self._say_changed()

    def check_packing(self):
        """A ValueError if `pack_as` would raise one."""
        if quantised_as(self) is not None or lora_of(self) is not None:
            raise ValueError(f"'{self.path}' is quantised already, or has a LoRA. Quantise the model it was made of.")

    @property
    def is_wide(self):
        """Whether bfloat16 takes fewer bytes than the layer's dtype."""
        return self.variable_dtype in ("float32", "float64")

    @property
    def is_exact(self):
        """Whether bfloat16 has all its numbers."""
        return _is_exact(ops.convert_to_numpy(self._embeddings))

    def build(self, shape=None):
        if self.scheme is None:
            super().build(shape)
            return
        self._add_packed()
        self.built = True

    def _add_packed(self):
        options = {"dtype": "bfloat16", "trainable": False, "autocast": False}
        shape = (self.input_dim, self.output_dim)
        self._embeddings = self.add_weight(shape, self.embeddings_initializer, name="embeddings", **options)

    def load_own_variables(self, store):
        if self.scheme is not None and not _is_exact(np.asarray(store["0"])):
            raise ValueError(
                f"'{self.path}' is stored in bfloat16 here, which would round the file's. Build the model with "
                "`Quantization(..., skip=('embed',))`, or from that file."
            )
        super().load_own_variables(store)


def _is_exact(numbers):
    """Whether bfloat16 has all numbers of a matrix."""
    parts = (numbers[start : start + ROWS] for start in range(0, len(numbers), ROWS))
    rounded = ((part, part.astype(ml_dtypes.bfloat16).astype(part.dtype)) for part in parts)
    return all(np.array_equal(*pair, equal_nan=True) for pair in rounded)
