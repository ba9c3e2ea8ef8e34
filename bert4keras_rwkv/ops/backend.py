"""What differs between backends and is not covered by `keras.ops`."""

import contextlib
from contextvars import ContextVar

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops

KIND = ContextVar("kind", default=None)  # of the device on which is computed now, if it was named; `devices.on` sets it


def name():
    """'jax', 'tensorflow', 'torch' or 'numpy': the backend Keras runs on."""
    return keras.backend.backend()


def runs_ahead():
    """Whether compiled functions return before they have run, and what they return may be passed on."""
    return name() == "jax"


def has_accelerator():
    """Whether arrays live on a GPU or TPU by default."""
    if KIND.get() is not None:
        return KIND.get() != "cpu"
    if name() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if name() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"))
    if name() == "torch":
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return False


def device_kind():
    """Where arrays live by default: 'cpu', 'cuda' (a GPU of NVIDIA), or another word for another accelerator."""
    if KIND.get() == "cpu":
        return "cpu"
    if not has_accelerator():
        return "cpu"
    if name() == "jax":
        import jax

        device = jax.devices()[0]
        return "cuda" if device.platform == "gpu" and "cuda" in device.client.platform_version else device.platform
    if name() == "torch":
        import torch

        return "cuda" if torch.cuda.is_available() and torch.version.cuda else "accelerator"
    return "accelerator"


def once_while_tracing(function):
    """`function` of constants. PyTorch does not compile it into a program, and takes what it returns for constant."""
    if name() != "torch":
        return function
    import torch

    return torch.compiler.assume_constant_result(function)


def device_of(x):
    """The kind of device on which a tensor lies, as PyTorch names it; None on other backends, and of what is none."""
    return getattr(getattr(x, "device", None), "type", None) if name() == "torch" else None


def kind_of(device):
    """`device_kind` for what `device_of` says."""
    if device != "cuda":
        return device
    import torch

    return "cuda" if torch.version.cuda else "accelerator"


def beside(x, like=None):
    """x as a tensor; what is none yet becomes one on the device of the tensor `like`."""
    if ops.is_tensor(x):
        return x
    return there(ops.convert_to_tensor(x), like)


def there(x, like):
    """The tensor x on the device of the tensor `like`; Keras' operators put what they make on the default one."""
    return x.to(like.device) if name() == "torch" and like is not None else x


def nothing(dtype, like):
    """An empty tensor (0,), on the device of the tensor `like`."""
    if name() != "torch":
        return ops.zeros((0,), dtype)
    import torch

    return torch.empty((0,), dtype=getattr(torch, dtype), device=like.device)


def dtype_name(x):
    """The name of a tensor's dtype. Keras' `standardize_dtype` is slow enough to tell where one token is decoded."""
    said = str(x.dtype)  # "<dtype: 'float32'>" on TensorFlow
    return x.dtype.name if said.startswith("<") else said.removeprefix("torch.")


def accumulation_dtype(dtype):
    """The dtype of the recurrence for a compute dtype: float64 stays, everything else is float32."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def adopt(array):
    """A NumPy array of numbers, which nobody will write to any more, as a tensor of its own dtype.

    On a CPU the tensor is the array's memory, if that begins at a multiple of 64 bytes. Keras would copy it, and keep
    two of them until the array is forgotten.
    """
    if name() == "jax":
        import jax

        return jax.device_put(array)
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.bitcast(tf.experimental.dlpack.from_dlpack(_bits(array).__dlpack__()), str(array.dtype))
    if name() == "torch":
        import torch

        return ops.convert_to_tensor(torch.from_numpy(_bits(array)).view(getattr(torch, str(array.dtype))))
    return array


def _bits(array):
    """The array as integers, for exchanges that do not know bfloat16."""
    return array.view(np.dtype(f"int{8 * array.dtype.itemsize}"))


def materialise(x):
    """`x` itself, written to memory where the compiler would rather compute it again for each of its users.

    XLA fuses cheap and dear operations alike into every consumer; on a CPU that can double the work.
    """
    if name() == "jax":
        import jax

        return jax.lax.optimization_barrier(x)
    return x


def exact_products():
    """A context in which products of float32 are of float32: on a GPU, JAX shortens the factors unless it is told."""
    if name() == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def needs_gradient(x):
    """Whether what is computed from x now will be differentiated; PyTorch knows, and nothing else does."""
    if name() != "torch":
        return False
    import torch

    return torch.is_grad_enabled() and x.requires_grad


def wide_matmul(x, y):
    """The product of two matrices, float32; of halves it is not rounded to halves between, where the backend can."""
    if name() == "jax":
        import jax.numpy as jnp

        return jnp.matmul(x, y, preferred_element_type="float32")
    return ops.cast(ops.matmul(x, y), "float32")


def host_call(function, *tensors):
    """Call `function(*arrays)` with the values of `tensors` as NumPy arrays, each time the surrounding code runs.

    Its answer is ignored. TensorFlow cannot do this inside code compiled by XLA.
    """
    if name() == "jax":
        import jax

        jax.debug.callback(lambda *arrays: function(*map(np.asarray, arrays)), *tensors)
    elif name() == "tensorflow":
        import tensorflow as tf

        tf.py_function(lambda *arrays: function(*[array.numpy() for array in arrays]), tensors, [])
    else:
        function(*map(ops.convert_to_numpy, tensors))


def global_random_state():
    """The states of the backend's own generators, a list of bytes; empty where Keras uses none.

    No seed generator of Keras drives them: on PyTorch its dropout without a seed draws from there.
    """
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
