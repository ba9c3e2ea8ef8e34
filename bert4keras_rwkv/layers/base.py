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
