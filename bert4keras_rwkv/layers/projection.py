"""The projections of all versions: products with a matrix, to which a LoRA may be added, or which may be quantised.

What Keras' layers say of both is asked for here only. The functions take any layer: the embedding is quantised too.
"""

from dataclasses import asdict, dataclass

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.halves import Halvable
from bert4keras_rwkv.layers.packed import Packable, PackedKernel
from bert4keras_rwkv.ops.matmul import MATRICES, Scheme
from bert4keras_rwkv.ops.matmul import dense as dense_product


class Watched:
    """A layer of Keras' that says when it has other variables than before."""

    watcher = None  # a weak reference to what is called when the layer has other variables than before

    def quantize(self, mode=None, type_check=False, config=None):
        # Keras refuses subclasses, which may do something else with the kernel; these do not.
        super().quantize(mode, type_check=False, config=config)
        self._say_changed()

    def enable_lora(self, *args, **kwargs):
        super().enable_lora(*args, **kwargs)
        self._say_changed()

    def _say_changed(self):
        watcher = None if self.watcher is None else self.watcher()
        if watcher is not None:
            watcher()


class Changeable(Watched):
    """What Keras' Dense and EinsumDense lack: another LoRA after the first, and a file that is the layer.

    A file has the kernel with the LoRA added, as Keras writes it, for those who know of none; and beside it the base
    and the LoRA as they are, for a layer that has one too.
    """

    def drop_lora(self):
        """Take the LoRA off; what it added is lost. Keras has no way to."""
        for name in ("lora_kernel_a", "lora_kernel_b"):
            self._untrack_variable(getattr(self, name))
            setattr(self, name, None)
        self.lora_enabled, self.lora_rank, self.lora_alpha = False, None, None
        self._say_changed()

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.built and self.lora_enabled:
            for name, variable in self._apart().items():
                store[name] = variable

    def load_own_variables(self, store):
        names = set(store.keys())
        if not self.lora_enabled:
            super().load_own_variables({name: store[name] for name in names if name.isdigit()})
            return
        parts, factor = self._apart(), ops.copy(self.lora_kernel_a)
        if "lora_a" in names and tuple(store["lora_a"].shape) != tuple(self.lora_kernel_a.shape):
            raise ValueError(
                f"The LoRA of '{self.path}' has rank {self.lora_rank}, that in the file {store['lora_a'].shape[-1]}. "
                "Call `enable_lora` with that rank."
            )
        super().load_own_variables(store)
        self.lora_kernel_a.assign(factor)  # Keras has put 0 into both factors, of which nothing would ever train
        if "lora_a" in names:
            for name, variable in parts.items():
                variable.assign(store[name])

    def _apart(self):
        """Name in a file -> variable, of a LoRA and of what it is added to."""
        names = [name for name in self.variable_serialization_spec[self.quantization_mode] if name != "bias"]
        base = {name: self._kernel if name == "kernel" else getattr(self, name, None) for name in names}
        parts = {f"base_{name}": variable for name, variable in base.items() if variable is not None}
        return {**parts, "lora_a": self.lora_kernel_a, "lora_b": self.lora_kernel_b}


class Rows(Changeable, keras.layers.Dense):
    """Keras' Dense, multiplying rows: x (..., inputs) -> (..., units).

    With batch and time apart XLA transposes what it computes the kernel's gradient of, which takes a CPU as long as
    all the rest of a training step.
    """

    form = "auto"  # of the product, see `ops.kernels.choose`

    def call(self, x, training=None):
        rows = x if len(x.shape) < 3 else ops.reshape(x, (-1, x.shape[-1]))
        y = self.product(rows)
        y = super().call(rows, training=training) if y is None else self.activation(ops.cast(y, self.compute_dtype))
        return y if rows is x else ops.reshape(y, (*ops.shape(x)[:-1], self.units))

    def product(self, x):
        """x (R, inputs) times the kernel, (R, units) float32; None: as Keras computes it."""
        plain = self.variable_dtype == self.compute_dtype in MATRICES and self.quantization_mode is None
        return dense_product(x, self._kernel, self.form) if plain and not self.lora_enabled else None

    def with_lora(self, y, x):
        """y (R, units), and what a LoRA adds to it for x (R, inputs)."""
        if not self.lora_enabled:
            return y
        a, b = (ops.cast(part, x.dtype) for part in (self.lora_kernel_a, self.lora_kernel_b))
        return y + ops.cast(self.lora_alpha / self.lora_rank * ops.matmul(ops.matmul(x, a), b), y.dtype)


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Projection(Packable, Rows):
    """A projection whose kernel may be packed."""


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Factor(Halvable, Rows):
    """A projection to a few numbers or from them, whose kernel may be stored in bfloat16, but in no fewer bits."""

    def build(self, shape):
        super().build(shape)
        if self.scheme is not None:
            self.store_halves()

    def product(self, x):
        if self.scheme is None:
            return super().product(x)
        kernel = self._kernel if self.compute_dtype == "float32" else ops.cast(self._kernel, self.compute_dtype)
        return self.with_lora(dense_product(x, kernel, self.form), x)


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Projections(Changeable, keras.layers.EinsumDense):
    """Several products side by side: Keras' EinsumDense, x (B, T, groups, rank) -> (B, T, groups, units)."""

    def apart(self, x):
        """What a call gives for x (B, T, groups * rank), as a list of one (B, T, units) each.

        XLA on a CPU lays out what they give together so that its readers cross all of it; apart they take half as long.
        """
        groups, rank, _ = kernel_shape(self)
        if quantised_as(self) is not None or x.shape[1] == 1:
            together = self(ops.reshape(x, (*ops.shape(x)[:2], groups, rank)))
            return [together[:, :, i] for i in range(groups)]
        kernel, bias = ops.cast(self.kernel, x.dtype), ops.cast(self.bias, x.dtype)
        return [x[..., i * rank : (i + 1) * rank] @ kernel[i] + bias[i] for i in range(groups)]


def dense(units, name, initializer, dtype, kind=Projection, **kwargs):
    """A projection without bias."""
    return kind(units, use_bias=False, kernel_initializer=initializer, name=name, dtype=dtype, **kwargs)


@dataclass(frozen=True)
class Lora:
    """The LoRA of a layer: A and B, variables, and what it adds to the kernel, A B times alpha / rank."""

    a: object
    b: object
    rank: int
    alpha: float

    def change(self, scale=1.0):
        """`scale` times what it adds, as a tensor."""
        return ops.matmul(self.a, self.b) * (scale * self.alpha / self.rank)


def lora_of(layer):
    """The `Lora` of a layer; None if it has none."""
    if not getattr(layer, "lora_enabled", False):
        return None
    name = "embeddings" if hasattr(layer, "lora_embeddings_a") else "kernel"
    a, b = (getattr(layer, f"lora_{name}_{part}") for part in "ab")
    return Lora(a, b, layer.lora_rank, layer.lora_alpha)


def fold_lora(layer, scale=1.0):
    """Add a layer's LoRA, times `scale`, to its kernel, and start it anew at zero."""
    lora, kernel = lora_of(layer), kernel_variable(layer)
    kernel.assign(kernel + ops.cast(lora.change(scale), kernel.dtype))
    lora.b.assign(np.zeros(lora.b.shape, "float32"))


def scheme_of(layer):
    """The `Scheme` in which a layer's kernel is packed, else None."""
    return getattr(layer, "scheme", None)


def is_packed(layer):
    """Whether a layer's kernel is packed, which is not said of one that is only stored in bfloat16."""
    return isinstance(layer, Packable) and layer.scheme is not None


def is_halved(layer):
    """Whether a layer's matrix is stored in bfloat16 as it is."""
    return isinstance(layer, Halvable) and layer.scheme is not None


def quantised_as(layer):
    """'int8', 'int4', 'bfloat16', ... of a layer that is packed or that Keras quantised, else None."""
    scheme = scheme_of(layer)
    return getattr(layer, "quantization_mode", None) if scheme is None else scheme.name


def quantisation_of(layer):
    """How a quantised layer is made so again, for a config: what `quantise` takes."""
    if scheme_of(layer) is not None:
        return [PACKED, asdict(layer.scheme)]
    return [quantised_as(layer), keras.saving.serialize_keras_object(layer.quantization_config)]


def quantise(layer, mode, config):
    """Quantise a layer as another one is, see `quantisation_of`."""
    if mode == PACKED:
        layer.pack_as(Scheme(**config))
    else:
        layer.quantize(mode, config=keras.saving.deserialize_keras_object(config))


PACKED = "packed"


def kernel_variable(layer):
    """The variable of a layer's kernel, without what its LoRA adds; of a packed one what takes its place."""
    return PackedKernel(layer) if is_packed(layer) else layer._kernel


def kernel_shape(layer):
    """The shape of a layer's kernel; a quantised one may be stored in another."""
    return tuple((kernel_variable(layer) if quantised_as(layer) is None else layer.kernel).shape)


def kernel_matrix(layer):
    """The kernel (inputs, outputs) that a projection multiplies by, as a tensor; a quantised one says it of itself."""
    if quantised_as(layer) is None or scheme_of(layer) is not None:
        return ops.convert_to_tensor(layer.kernel)
    return layer(ops.eye(layer.kernel.shape[0], dtype=layer.compute_dtype))


class MergedKernel:
    """A layer's kernel with its LoRA added, an array that is computed when it is read."""

    def __init__(self, layer):
        self.layer, self.shape, self.dtype = layer, tuple(kernel_variable(layer).shape), layer.variable_dtype

    def __array__(self, dtype=None, copy=None):
        return np.asarray(ops.convert_to_numpy(self.layer.kernel), dtype)
