"""The RWKV-6 recurrence alone as a worker, forward and backward. The backend is KERAS_BACKEND."""

import time

import numpy as np

from .worker import serve

B, T, H, N = 4, 1024, 12, 64


def inputs():
    """r, w, k, v, u, state with a log decay between about -0.002 and -2."""
    random = np.random.default_rng(0)
    r, k, v, decay = (random.standard_normal((B, T, H, N), "float32") for _ in range(4))
    return (
        r,
        -np.exp(1.5 * decay - 3.0),
        k,
        v,
        random.standard_normal((H, N), "float32"),
        np.zeros((B, H, N, N), "float32"),
    )


def jax_forms(form):
    import jax

    def loss(*arrays):
        y, state = form(*arrays)
        return (y * y).mean() + (state * state).mean()

    gradient = jax.jit(jax.grad(loss, argnums=tuple(range(6))))
    forward = jax.jit(form)
    return lambda *a: jax.block_until_ready(forward(*a)), lambda *a: jax.block_until_ready(gradient(*a))


def tensorflow_forms(form):
    import tensorflow as tf

    @tf.function
    def forward(*arrays):
        return form(*arrays)

    @tf.function
    def gradient(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            y, state = form(*arrays)
            loss = tf.reduce_mean(y * y) + tf.reduce_mean(state * state)
        return tape.gradient(loss, arrays)

    return lambda *a: [x.numpy() for x in forward(*a)], lambda *a: [x.numpy() for x in gradient(*a)]


def torch_forms(form):
    import torch

    def forward(*arrays):
        with torch.no_grad():
            return form(*arrays)

    def gradient(*arrays):
        arrays = [a.detach().requires_grad_() for a in arrays]
        y, state = form(*arrays)
        return torch.autograd.grad((y * y).mean() + (state * state).mean(), arrays)

    return forward, gradient


class Recurrence:
    """Commands `loop_forward`, `loop_both`, `chunked_forward`, `chunked_both` (both: forward and backward)."""

    def __init__(self):
        import keras

        from bert4keras_rwkv.ops.wkv6 import wkv6

        forms = {"jax": jax_forms, "tensorflow": tensorflow_forms, "torch": torch_forms}[keras.backend.backend()]
        self.arrays = [keras.ops.convert_to_tensor(a) for a in inputs()]
        for name, kernel in (("loop", "loop"), ("chunked", "ops")):
            forward, both = forms(lambda *a, kernel=kernel: wkv6(*a, kernel=kernel))
            setattr(self, f"{name}_forward", lambda f=forward: self.clock(f))
            setattr(self, f"{name}_both", lambda f=both: self.clock(f))
            self.clock(forward)
            self.clock(both)

    def clock(self, function):
        started = time.perf_counter()
        function(*self.arrays)
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(Recurrence)
