"""State tuning: the state in which every text begins becomes the weight that trains, and all else is frozen."""

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.projection import lora_of
from bert4keras_rwkv.state import RWKVState


def enable_state_tuning(backbone, time_shift_tuning=False):
    """Freeze a backbone but for LoRA weights, and give it initial states that train. A ValueError if it has them."""
    if backbone.start_states:
        raise ValueError(
            "State tuning is on already. Its state is read with `tuned_state`, set with `set_tuned_state`."
        )
    freeze(backbone)
    backbone.tune_states(time_shift_tuning)


def freeze(backbone):
    """Let no weight train but those of LoRA and of tuned states. A variable is frozen, not a layer: LoRA shares it.

    `Backbone.changed` is for the caller to say.
    """
    found = filter(None, map(lora_of, backbone._flatten_layers()))
    adapters = {id(variable) for lora in found for variable in (lora.a, lora.b)}
    states = {id(variable) for layer in backbone.start_states for variable in layer.variables}
    for variable in backbone.variables:
        if id(variable) not in adapters | states:
            variable.trainable = False


def tuned_state(backbone):
    """The tuned state as an RWKVState of one row, NumPy arrays."""
    _check_tuned(backbone)
    wkv, shift = backbone.pack(backbone.start(1))
    state = RWKVState(ops.convert_to_numpy(wkv), ops.convert_to_numpy(shift), backbone.config.model)
    return state


def set_tuned_state(backbone, state):
    """Begin every text in `state`, an RWKVState of one row. One that does not fit is a ValueError: nothing changes."""
    _check_tuned(backbone)
    state, wanted = state.numpy(), RWKVState.shapes(backbone.config)
    received = (tuple(state.wkv.shape), tuple(state.shift.shape))
    if received != tuple((1, *shape) for shape in wanted) or state.model not in (None, backbone.config.model):
        raise ValueError(
            f"The tuned state is one row of {backbone.config.model}: wkv (1, {str(wanted[0])[1:]}, shift "
            f"(1, {str(wanted[1])[1:]}. Received: {state.model}, wkv {received[0]}, shift {received[1]}."
        )
    shift = np.asarray(state.shift, "float32")
    if shift.any() and not backbone.start_states[0].shift:
        raise ValueError(
            "This state has last inputs that are not zero, which `enable_state_tuning(time_shift_tuning=True)` keeps."
        )
    for i, layer in enumerate(backbone.start_states):
        layer.assign(state.wkv[0, i], shift[0, 2 * i : 2 * i + 2])


def _check_tuned(backbone):
    if not backbone.start_states:
        raise ValueError("This model has no tuned state. Call `enable_state_tuning` first.")
