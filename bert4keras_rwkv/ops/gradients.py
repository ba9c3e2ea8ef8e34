"""Functions that compute their gradients on the way forward, on every backend.

`keras.ops.custom_gradient` does not serve: it passes its cotangents differently on JAX and TensorFlow, and fails with
several results on torch.
"""

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend


def with_gradients(value, both):
    """A function of tensors whose gradients are those that `both` gives.

    value(*tensors) -> a scalar, or a vector whose first entry has gradients and the others none. both(*tensors) -> (the
    same, a gradient for each tensor, None for one that has none, such as ids). What runs where no gradient is asked for
    is `value`; TensorFlow cannot know, and runs `both`.
    """
    makers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    return makers[backend.name()](value, both) if backend.name() in makers else value


def _times(gradients, cotangent):
    """The chain rule; each gradient keeps its dtype."""
    first = ops.reshape(cotangent, (-1,))[0]
    return tuple(None if g is None else g * ops.cast(first, g.dtype) for g in gradients)


def _jax(value, both):
    import jax

    function = jax.custom_vjp(value)
    function.defvjp(both, _times)
    return function


def _tensorflow(value, both):
    import tensorflow as tf

    @tf.custom_gradient
    def function(*tensors):
        result, gradients = both(*tensors)
        return result, lambda cotangent: _times(gradients, cotangent)

    return lambda *tensors: function(*map(tf.convert_to_tensor, tensors))  # a variable is not a tensor to it


def _torch(value, both):
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            if not any(ctx.needs_input_grad):
                return value(*tensors)
            result, gradients = both(*tensors)
            ctx.save_for_backward(*gradients)
            return result

        @staticmethod
        def backward(ctx, cotangent):
            return _times(ctx.saved_tensors, cotangent)

    return lambda *tensors: Function.apply(*map(ops.convert_to_tensor, tensors))


def unless_differentiated(forward, trained):
    """`forward`, but `trained`, the same function of tensors and Nones, wherever a gradient is taken. JAX only."""
    import jax

    chosen = jax.custom_vjp(forward)
    chosen.defvjp(lambda *args: jax.vjp(trained, *args), lambda pullback, gradient: pullback(gradient))
    return chosen


def gradients(function, jit=False):
    """A function of the same tensors that returns the gradient of each, for a `function(*tensors)` that gives a scalar.

    On JAX and TensorFlow it is compiled when it is first called. jit: on TensorFlow through XLA, as JAX always does.
    """
    makers = {"jax": _gradients_on_jax, "torch": _gradients_on_torch, "tensorflow": _gradients_on_tensorflow}
    return makers[backend.name()](function, jit)


def _gradients_on_jax(function, _):
    import jax

    differentiated = jax.jit(jax.grad(lambda tensors: function(*tensors)))
    return lambda *tensors: differentiated(tensors)


def _gradients_on_torch(function, _):
    import torch

    def differentiated(*tensors):
        tensors = [ops.convert_to_tensor(x).detach().clone().requires_grad_() for x in tensors]
        return torch.autograd.grad(function(*tensors), tensors)

    return differentiated


def _gradients_on_tensorflow(function, jit):
    import tensorflow as tf

    @tf.function(jit_compile=jit, autograph=False)
    def differentiated(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        return tape.gradient(value, tensors)

    return lambda *tensors: differentiated(*map(ops.convert_to_tensor, tensors))
