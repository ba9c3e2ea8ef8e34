"""What our layers have in common."""

import contextlib

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.token_shift import token_shift


class Layer(keras.layers.Layer):
    """A layer whose arguments keep their dtype and whose weights are stored under their names.

    Keras would cast every float argument to the compute dtype, the float32 recurrent state too; here each layer casts
    what it computes with. Weights are read with `cast_like`, which casts them to what they meet.
    """

    scale = 1.0  # of what a mixer gives, see `layers.block.Block`

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def add(self, name, shape, initializer):
        """Add a trainable weight. Returns the variable, in the policy's variable dtype, never autocast."""
        return self.add_weight(shape=shape, name=name, initializer=initializer, autocast=False)

    @contextlib.contextmanager
    def extended(self):
        """While it lasts the layer takes new variables and sublayers, though it is built (as in Keras' enable_lora)."""
        self._tracker.unlock()
        try:
            yield
        finally:
            self._tracker.lock()

    def save_own_variables(self, store):
        for variable in self._own_variables():
            store[variable.name] = variable

    def load_own_variables(self, store):
        for variable in self._own_variables():
            variable.assign(store[variable.name])

    def _own_variables(self):
        return [*self._trainable_variables, *self._non_trainable_variables]


def shifted(x, state, side):
    """Each token's predecessor (B, T, D) and the last real token (B, D), for a mixer of this state."""
    start = state.get("start", {})
    return token_shift(x, state["x"], side["present"], side["reset"], start.get("x"), side["rows"])


def recurrent(state, side):
    """What a recurrence is told beside its inputs: state, present, reset, start."""
    return state["wkv"], side["present"], side["reset"], state.get("start", {}).get("wkv")


def cast_like(variable, x):
    """The value of a variable in x's dtype."""
    return ops.cast(variable, x.dtype)


def squared_relu(x, scale=1.0):
    """relu(x)^2 * scale, multiplied in an order in which no product is larger than the answer needs."""
    x = ops.relu(x)
    return ops.square(x) if scale == 1 else x * (x * scale)


def scaled(x, scale):
    """x * scale; x itself if the scale is 1."""
    return x if scale == 1 else x * scale


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Projection(keras.layers.Dense):
    """Keras' Dense, multiplying rows: x (..., inputs) -> (..., units).

    With batch and time apart XLA transposes what it computes the kernel's gradient of, which takes a CPU as long as
    all the rest of a training step.

    A file has the kernel with the LoRA added, as Keras writes it, for those who know of none; and beside it the base
    and the LoRA as they are, for a layer that has one too.
    """

    watcher = None  # a weak reference to what is called when the layer has other variables than before

    def call(self, x, training=None):
        if len(x.shape) < 3:
            return super().call(x, training=training)
        leading = ops.shape(x)[:-1]
        y = super().call(ops.reshape(x, (-1, x.shape[-1])), training=training)
        return ops.reshape(y, (*leading, self.units))

    def quantize(self, mode=None, type_check=False, config=None):
        # Keras refuses subclasses, which may do something else with the kernel; this one does not.
        super().quantize(mode, type_check=False, config=config)
        self._say_changed()

    def enable_lora(self, *args, **kwargs):
        super().enable_lora(*args, **kwargs)
        self._say_changed()

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

    def _say_changed(self):
        watcher = None if self.watcher is None else self.watcher()
        if watcher is not None:
            watcher()


def dense(units, name, initializer, dtype, **kwargs):
    """A projection without bias."""
    return Projection(units, use_bias=False, kernel_initializer=initializer, name=name, dtype=dtype, **kwargs)
