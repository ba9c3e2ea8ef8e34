"""The random numbers that no seed generator of Keras drives: on PyTorch its dropout without a seed draws from there."""

from bert4keras_rwkv.ops.backend import name


def global_random_state():
    """The states of the backend's own generators, a list of bytes; empty where Keras uses none."""
    if name() != "torch":
        return []
    import torch

    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return [state.numpy().tobytes() for state in states]


def set_global_random_state(states):
    """Go on with what `global_random_state` gave. On another number of devices the first ones are set."""
    if name() != "torch" or not states:
        return
    import torch

    first, *others = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states)
    torch.set_rng_state(first)
    for device, state in zip(range(torch.cuda.device_count()), others, strict=False):
        torch.cuda.set_rng_state(state, device)
