"""The one place that compiles a function."""

import contextlib

import keras

from bert4keras_rwkv.generation.executables import Kept
from bert4keras_rwkv.ops import backend


def compiled(function, variables=(), donate=(), description=None):
    """A compiled version of `function(*tensors)`, kept and used again for tensors of the same shapes.

    function: takes and returns nested structures (tuples, lists, dicts, None) of tensors; it may read `variables`, a
    list of Keras variables or a function that returns one, but not assign them. They are arguments of the compiled
    program, not constants in it. donate: positions of arguments that are used up by the call (JAX; ignored elsewhere).
    NumPy arrays are accepted. On torch and NumPy the function runs eagerly, without gradients.
    description: a function that returns the `executables.Description` of `function`: its executables are kept for the
    next process, too (JAX; ignored elsewhere). It is for calls from outside compiled functions.
    """
    if backend.name() == "jax":
        return _jax(function, variables, donate, description)
    if backend.name() == "tensorflow":
        return _tensorflow(function)
    return eager(function)


def eager(function):
    """`function` for the same arguments, run operation by operation."""

    def call(*args):
        with no_gradient():
            return function(*keras.tree.map_structure(_tensor, args))

    return call


def wants_fixed_shapes():
    """Whether every new shape costs a compilation."""
    return backend.name() == "jax" or (backend.name() == "tensorflow" and _xla())


def no_gradient():
    """A context in which no gradient is recorded (torch; nothing elsewhere)."""
    if backend.name() == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()


def _jax(function, variables, donate, description):
    import jax

    # The variables of the trace: set before each call, read when `run` is traced.
    known = []

    def run(values, *args):
        with keras.StatelessScope(state_mapping=list(zip(known, values, strict=True))):
            return function(*args)

    program = jax.jit(run, donate_argnums=tuple(i + 1 for i in donate))
    if description is not None:
        program = Kept(program, description)

    def call(*args):
        known[:] = variables() if callable(variables) else variables
        return program([v.value for v in known], *args)

    return call


def _tensorflow(function):
    import tensorflow as tf

    program = tf.function(function, autograph=False, reduce_retracing=True, jit_compile=_xla())

    def call(*args):
        return program(*keras.tree.map_structure(_tensor, args))

    return call


def _xla():
    """Keras' own rule for TensorFlow: XLA on a GPU, not on a CPU."""
    return backend.has_accelerator()


def _tensor(x):
    return None if x is None else keras.ops.convert_to_tensor(x)
