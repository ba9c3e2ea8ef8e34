"""The one place that compiles a function."""

import contextlib
import logging

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.executables import Kept
from bert4keras_rwkv.ops.traced import Traced

scopes = keras.src.backend.common.stateless_scope
OURS = set()  # how TensorFlow names the functions that are compiled here


def compiled(function, variables=(), description=None, again=False):
    """A compiled version of `function(*tensors)`, kept and used again for tensors of the same shapes.

    function: takes and returns nested structures (tuples, lists, dicts, None) of tensors; it may read `variables`, a
    list of Keras variables or a function that returns one, but not assign them. They are arguments of the compiled
    program, not constants in it. NumPy arrays are accepted. On torch and NumPy the function runs eagerly, without
    gradients.
    again: it is called for one token after another, and its course does not depend on numbers in tensors: on torch its
    operators are recorded once, and run without Keras' layers (`traced`).
    description: a function that returns the `executables.Description` of `function`: its executables are kept for the
    next process, too (JAX; ignored elsewhere). It is for calls from outside compiled functions.
    """
    if backend.name() == "jax":
        return _jax(function, variables, description)
    if backend.name() == "tensorflow":
        return _tensorflow(function)
    if again and wants_steps():
        return eager(Traced(function, variables, values))
    return eager(function)


def eager(function):
    """`function` for the same arguments, run operation by operation."""

    def call(*args):
        with no_gradient():
            return function(*keras.tree.map_structure(_tensor, args))

    return call


def wants_fixed_shapes():
    """Whether every new shape costs a compilation."""
    return backend.name() in ("jax", "tensorflow")


def wants_steps():
    """Whether only functions that are called `again` and again are programs, and what loops around them is none."""
    return backend.name() == "torch"


def no_gradient():
    """A context in which no gradient is recorded (torch; nothing elsewhere)."""
    if backend.name() == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()


def compiled_for_any(function, variables, description):
    """A compiled `function(*tensors)` that is called with other values for `variables` each time (JAX only).

    Called as (list of values, *tensors). Otherwise as `compiled`.
    """
    import jax

    def run(values, *args):
        known = variables() if callable(variables) else variables
        with keras.StatelessScope(state_mapping=list(zip(known, values, strict=True))):
            return function(*args)

    program = jax.jit(run)
    return program if description is None else Kept(program, description)


def _jax(function, variables, description):
    program = compiled_for_any(function, variables, description)

    def call(*args):
        known = variables() if callable(variables) else variables
        return program(values(known), *args)

    return call


def values(variables):
    """The values of Keras variables, outside of the functions that are compiled.

    A model has hundreds, and each asks three times in which scope it is when it is asked for its value: a millisecond a
    token. Here it is asked once.
    """
    if scopes.in_stateless_scope():
        return [variable.value for variable in variables]
    return [variable._value for variable in variables]


def _tensorflow(function):
    """A program for each set of shapes, so that the shapes are numbers in it and no graph is traced for two of them."""
    import tensorflow as tf

    programs = {}

    def call(*args):
        args = keras.tree.map_structure(_tensor, args)
        # What is None, and what is nested in what, is part of the key.
        key = repr(keras.tree.map_structure(_kind, args))
        if key not in programs:
            OURS.add(f"<{'bound method' if hasattr(function, '__self__') else 'function'} {function.__qualname__} ")
            logging.getLogger("tensorflow").addFilter(_no_retracing_of_ours)
            programs[key] = tf.function(function, autograph=False, jit_compile=_xla())
        return programs[key](*args)

    return call


def _no_retracing_of_ours(record):
    """Leave out TensorFlow's advice on functions traced again: ours are traced once for each set of shapes."""
    message = record.getMessage()
    return "retracing" not in message or not any(name in message for name in OURS)


def _kind(tensor):
    return None if tensor is None else (str(tensor.dtype), str(tensor.shape))


def _xla():
    """Keras' own rule for TensorFlow: XLA on a GPU, not on a CPU."""
    return backend.has_accelerator()


def _tensor(x):
    return None if x is None else keras.ops.convert_to_tensor(x)
