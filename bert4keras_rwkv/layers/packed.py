"""A dense layer whose kernel is stored in fewer bytes, see `ops.matmul`."""

import contextlib

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.initial import blank
from bert4keras_rwkv.ops.backend import adopt
from bert4keras_rwkv.ops.matmul import LARGEST, matmul, pack, unpack
from bert4keras_rwkv.packing import pack_pieces
from bert4keras_rwkv.weights.copying import aligned


class Packable:
    """For `Rows` without a bias. scheme: the `Scheme` of its kernel, None: the kernel is as Keras has it.

    The tensors of a packed kernel do not train; a LoRA beside it does.
    """

    scheme = None

    def pack_as(self, scheme, arrays=None):
        """Pack the kernel. Of a layer that is not built yet: it will be packed when it is built.

        arrays: what `packed_as` gave for it, None: that without weights.

        Raises:
            ValueError: it is packed or quantised already, has a LoRA, or numbers that cannot be packed.
        """
        self.check_packing()
        if not self.built:
            self.scheme = scheme
            return
        arrays = self.packed_as(scheme) if arrays is None else arrays
        inputs = self._kernel.shape[0]
        self._tracker.unlock()
        self._untrack_variable(self._kernel)
        self.scheme = scheme
        self._add_packed(inputs)
        self._tracker.lock()
        self._assign_packed(arrays)
        self._say_changed()

    def packed_as(self, scheme, weights=None):
        """The kernel packed, as `packing.pack` gives it; the layer stays as it is. weights: of its inputs."""
        with _named(self.path):
            return pack(ops.convert_to_numpy(self._kernel).T, scheme, weights)

    def check_packing(self):
        """A ValueError if `pack_as` would raise one, whatever the scheme."""
        if self.scheme is not None or self.quantization_mode is not None or self.lora_enabled:
            raise ValueError(f"'{self.path}' is quantised already, or has a LoRA. Quantise the model it was made of.")
        if self.built:
            largest = float(np.abs(np.asarray(ops.convert_to_numpy(self._kernel), "float32")).max())
            if not largest <= LARGEST:
                raise ValueError(f"'{self.path}' cannot be quantised: its largest number is {largest}.")

    def build(self, shape):
        if self.scheme is None:
            super().build(shape)
            return
        self._add_packed(shape[-1])
        self.bias = None
        self.input_spec = keras.InputSpec(min_ndim=2, axes={-1: shape[-1]})
        self.built = True

    def _add_packed(self, inputs):
        self.inputs, self.packed = inputs, {}
        for name, (shape, dtype) in self.scheme.tensors(self.units, inputs).items():
            options = {"dtype": dtype, "trainable": False, "autocast": False}
            self.packed[name] = self.add_weight(name=name, shape=shape, initializer=blank, **options)
        object.__setattr__(self, "_kernel", self.packed["packed"])  # as Keras' LoRA wants to have it

    def _assign_packed(self, arrays):
        for name, array in arrays.items():
            self.packed[name].assign(array)

    @property
    def kernel(self):
        """(inputs, units), with what a LoRA adds."""
        if self.scheme is None or not self.built:
            return super().kernel
        kernel = ops.transpose(unpack(self.packed, self.scheme, self.inputs))
        if self.lora_enabled:
            kernel = kernel + self.lora_alpha / self.lora_rank * ops.matmul(self.lora_kernel_a, self.lora_kernel_b)
        return ops.cast(kernel, self.compute_dtype)

    def product(self, x):
        """x (R, inputs) times the kernel, (R, units) float32; None: as Keras computes it."""
        if self.scheme is None:
            return super().product(x)
        return self.with_lora(matmul(x, self.packed, self.scheme, self.form), x)

    def save_own_variables(self, store):
        if self.scheme is None:
            super().save_own_variables(store)
            return
        for name, variable in self.packed.items():
            store[name] = variable
        if self.lora_enabled:
            store["lora_a"], store["lora_b"] = self.lora_kernel_a, self.lora_kernel_b

    def load_own_variables(self, store):
        names = set(store.keys())
        if self.scheme is None and "packed" in names:
            raise ValueError(f"The file's '{self.path}' is quantised. Build the model with the same `quantization`.")
        if self.scheme is None:
            super().load_own_variables(store)
            return
        wanted = {name: tuple(variable.shape) for name, variable in self.packed.items()}
        found = {name: tuple(store[name].shape) for name in names if not name.startswith("lora")}
        if found != wanted:
            raise ValueError(f"'{self.path}' has the tensors {wanted} as it is quantised here. Received: {found}.")
        self._assign_packed({name: store[name] for name in wanted})
        if self.lora_enabled and "lora_a" in names:
            self.lora_kernel_a.assign(store["lora_a"])
            self.lora_kernel_b.assign(store["lora_b"])


class PackedKernel:
    """The kernel (inputs, units) of a packed layer as a variable: what it is given is packed."""

    dtype = "float32"

    def __init__(self, layer):
        self.layer, self.shape, self.scheme = layer, (layer.inputs, layer.units), layer.scheme

    def assign_packed(self, arrays):
        """Take over what is packed already: name -> array, which nobody will write to any more."""
        self.layer._assign_packed({name: adopt(array) for name, array in arrays.items()})

    def pack(self, pieces):
        """Take over the rows of a matrix (units, inputs), (first row, rows) until all are there."""
        with _named(self.layer.path):
            self.assign_packed(pack_pieces(self.shape[::-1], pieces, self.scheme, empty=aligned))

    def parts(self):
        """Name -> variable, those of `scheme.tensors`."""
        return dict(self.layer.packed)

    def assign(self, array):
        self.pack([(0, ops.convert_to_numpy(array).T)])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(ops.convert_to_numpy(self.layer.kernel), dtype)


@contextlib.contextmanager
def _named(path):
    """A context in which a ValueError says that this matrix cannot be packed."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be quantised. {error}") from error
