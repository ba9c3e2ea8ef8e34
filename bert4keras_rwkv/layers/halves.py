"""Matrices that may be stored in bfloat16 as they are, computed with in a wider dtype."""

import ml_dtypes
import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.initial import blank

ROWS = 1 << 10  # compared at a time


class Halvable:
    """For a Keras layer of one matrix. scheme: None, or the `Scheme` of 16 bits: its numbers are stored in bfloat16.

    They do not train then. They are cast where they are used, so of numbers that bfloat16 has the answers are the
    same, bit for bit. matrix: the attribute of the variable.
    """

    scheme = None
    matrix = "_kernel"

    def pack_as(self, scheme, arrays=None):
        """Store the numbers in bfloat16, rounded. Of a layer that is not built yet: they will be when it is."""
        self.check_packing()
        self.scheme = scheme
        if not self.built:
            return
        self._tracker.unlock()
        self.store_halves()
        self._tracker.lock()
        self._say_changed()

    def store_halves(self):
        """Put a variable in bfloat16 in the place of the one that there is."""
        variable = getattr(self, self.matrix)
        numbers = ops.convert_to_numpy(variable)
        self._untrack_variable(variable)
        self.add_halves(variable.shape, variable.name)
        getattr(self, self.matrix).assign(numbers.astype(ml_dtypes.bfloat16))

    def add_halves(self, shape, name, initializer=blank):
        """Make the variable."""
        options = {"dtype": "bfloat16", "trainable": False, "autocast": False}
        setattr(self, self.matrix, self.add_weight(shape, initializer, name=name, **options))

    def check_packing(self):
        """A ValueError if `pack_as` would raise one."""
        if self.scheme is not None or self.quantization_mode is not None or self.lora_enabled:
            raise ValueError(f"'{self.path}' is quantised already, or has a LoRA. Quantise the model it was made of.")

    @property
    def is_wide(self):
        """Whether bfloat16 takes fewer bytes than the layer's dtype."""
        return self.variable_dtype in ("float32", "float64")

    @property
    def is_exact(self):
        """Whether bfloat16 has all its numbers."""
        return _is_exact(ops.convert_to_numpy(getattr(self, self.matrix)))

    def load_own_variables(self, store):
        below = self.lora_enabled and "base_kernel" in set(store.keys())  # what a LoRA of the file is added to
        if self.scheme is not None and not _is_exact(np.asarray(store["base_kernel" if below else "0"])):
            raise ValueError(
                f"'{self.path}' is stored in bfloat16 here, which would round the file's. Build the model with "
                "`Quantization(..., skip=('embed', 'low_rank'))`, or from that file."
            )
        super().load_own_variables(store)


def _is_exact(numbers):
    """Whether bfloat16 has all numbers of a matrix."""
    parts = (numbers[start : start + ROWS] for start in range(0, len(numbers), ROWS))
    rounded = ((part, part.astype(ml_dtypes.bfloat16).astype(part.dtype)) for part in parts)
    return all(np.array_equal(*pair, equal_nan=True) for pair in rounded)
