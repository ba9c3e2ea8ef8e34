"""The devices of this machine, by the names that strategies give them: 'cpu', 'cuda:0'. What lies on which of them.

JAX and PyTorch compute on several; on the other backends there is the processor, and what Keras chooses.
"""

import contextlib
import functools
import os

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.ops import backend

HOST = "cpu:0"  # whose memory is that of the machine
GPUS = {"gpu": "cuda", "rocm": "cuda"}  # how JAX calls what strategies, as PyTorch, call cuda


def names():
    """The names of all devices there are, the processor's first: ('cpu:0', 'cuda:0', 'cuda:1')."""
    return tuple(_devices())


def whole_name(device):
    """The name with a number, 'cuda:0', of a device that may lack it.

    Raises:
        ValueError: there is no such device; which there are.
    """
    name = device if ":" in device else f"{device}:0"
    if name not in names():
        raise ValueError(f"There is no device '{device}' here for {backend.name()}, which has {', '.join(names())}.")
    return name


def default():
    """The name of the device on which everything lies for which no other one was named."""
    if backend.name() == "jax":
        (here,) = keras.ops.zeros(()).devices()
        return next(name for name, device in _devices().items() if device == here)
    if backend.name() == "torch":
        here = keras.ops.zeros(()).device
        return f"{here.type}:{here.index or 0}"
    return next((name for name in names() if name != HOST), HOST)


def are_several():
    """Whether this backend can compute on another device than the default one."""
    return backend.name() in ("jax", "torch")


@contextlib.contextmanager
def on(name):
    """A context in which what is made lies on a device, and which kernels run is decided for it."""
    token = backend.KIND.set(name.partition(":")[0])
    try:
        with _default_device(name):
            yield
    finally:
        backend.KIND.reset(token)


def put(tree, name):
    """A nested structure of tensors, NumPy arrays and None, on a device. What is being traced stays as it is."""
    if backend.name() == "jax":
        import jax

        device, leaves = _devices()[name], jax.tree.leaves(tree)
        return tree if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) else jax.device_put(tree, device)
    with on(name):
        return keras.tree.map_structure(lambda x: None if x is None else keras.ops.convert_to_tensor(x), tree)


def move(variable, name, streamed=False):
    """Let the value of a Keras variable lie on a device. streamed: in memory from which others fetch it fast."""
    if backend.name() == "jax":
        variable.assign(put(variable.value, name))
    elif backend.name() == "torch":
        import torch

        value = variable.value.data.to(_devices()[name])
        pinned = streamed and torch.cuda.is_available() and not value.is_pinned()
        variable.value.data = value.pin_memory() if pinned else value


class Fetched:
    """Tensors on their way to a device, begun when this is made; `arrived` gives them when they can be used there."""

    def __init__(self, tensors, name):
        self._stream = None
        if backend.name() == "torch" and name.startswith("cuda"):
            import torch

            device = _devices()[name]
            self._stream = torch.cuda.Stream(device)
            with torch.cuda.stream(self._stream):
                self._tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
        else:
            self._tensors = put(tensors, name)

    def arrived(self):
        if self._stream is not None:
            import torch

            here = torch.cuda.current_stream(self._stream.device)
            here.wait_stream(self._stream)
            for tensor in self._tensors:
                tensor.record_stream(here)  # so that its memory is not used again before it was read
        return self._tensors


def wait(x):
    """Wait until a tensor is computed, and what it was computed from can be given up."""
    if backend.name() == "jax":
        x.block_until_ready()
    elif backend.name() == "torch" and x.is_cuda:
        import torch

        torch.cuda.current_stream(x.device).synchronize()


def free_memory(name):
    """How many bytes more can be taken of a device's memory, None where that is not known."""
    if name.startswith("cpu"):
        return _free_host_memory()
    if backend.name() == "jax":
        found = _devices()[name].memory_stats() or {}
        return found["bytes_limit"] - found["bytes_in_use"] if "bytes_limit" in found else None
    if backend.name() == "torch" and name.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(_devices()[name])[0]
    return None


@functools.cache
def _devices():
    """Name -> what the backend calls it, None where it has no word for it."""
    if backend.name() == "jax":
        import jax

        found, host = {}, []
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves the processor out
            host = jax.local_devices(backend="cpu")
        for device in (*host, *jax.local_devices()):
            kind = GPUS.get(device.platform, device.platform)
            if device not in found.values():
                found[f"{kind}:{sum(name.startswith(f'{kind}:') for name in found)}"] = device
        return found
    if backend.name() == "torch":
        import torch

        kinds = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        found = [f"{kind}:{i}" for kind, count in kinds.items() for i in range(count)]
        return {name: torch.device("cpu" if name == HOST else name) for name in found}
    found = {HOST: None}
    if backend.name() == "tensorflow":
        import tensorflow as tf

        found |= {f"cuda:{i}": None for i, _ in enumerate(tf.config.list_logical_devices("GPU"))}
    return found


def _default_device(name):
    if backend.name() == "jax":
        import jax

        return jax.default_device(_devices()[name])
    if backend.name() == "torch":
        return keras.device("cpu" if name == HOST else name)
    return contextlib.nullcontext()


def _free_host_memory():
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a system without these numbers
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
