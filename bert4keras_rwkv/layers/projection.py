"""The projections of all versions: products with a matrix, to which a LoRA may be added."""

from bert4keras_rwkv.keras_loader import keras, ops


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
