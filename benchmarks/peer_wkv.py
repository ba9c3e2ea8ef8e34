"""A recurrence alone as a worker, forward and backward; its argument is the version. The backend is KERAS_BACKEND."""

import functools
import importlib
import sys
import time

import numpy as np

from .worker import serve

B, T, H, N = 4, 1024, 12, 64


def inputs(version):
    """The inputs of RWKV-4, 6 or 7. The log of the decay is between about -0.002 and -2; at most -0.6 for 7.

    RWKV-4 has as many channels as the others' heads together.
    """
    random = np.random.default_rng(0)
    if version == "4":
        k, v = (random.standard_normal((B, T, H * N), "float32") for _ in range(2))
        w, u = (random.standard_normal(H * N, "float32") for _ in range(2))
        return k, v, -np.exp(1.5 * w - 3.0), u, np.zeros((B, 3, H * N), "float32")
    r, k, v, decay = (random.standard_normal((B, T, H, N), "float32") for _ in range(4))
    state = np.zeros((B, H, N, N), "float32")
    w = -np.exp(1.5 * decay - 3.0)
    if version == "6":
        return r, w, k, v, random.standard_normal((H, N), "float32"), state
    unit = random.standard_normal((B, T, H, N), "float32")
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    rate = random.random((B, T, H, N), "float32")
    return r, np.maximum(w, -0.6), k, v, -unit, unit * rate, state


def as_written(r, w, k, v, u, state):
    """RWKV-6's equation, term by term as the paper has it: one outer product a token, used twice."""
    from keras import ops

    from bert4keras_rwkv.ops.scan import scan

    def step(S, x):
        r, w, k, v = x
        new = k[..., :, None] * v[..., None, :]
        y = ops.einsum("bhk,bhkv->bhv", r, S + u[..., None] * new)
        return ops.exp(w)[..., None] * S + new, y

    state, y = scan(step, state, tuple(ops.moveaxis(x, 1, 0) for x in (r, w, k, v)))
    return ops.moveaxis(y, 0, 1), state


def jax_forms(form):
    import jax

    def loss(*arrays):
        y, state = form(*arrays)
        return (y * y).mean() + (state * state).mean()

    gradient = jax.jit(jax.grad(lambda arrays: loss(*arrays)))
    forward = jax.jit(form)
    return lambda *a: jax.block_until_ready(forward(*a)), lambda *a: jax.block_until_ready(gradient(a))


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
    """Commands `loop_forward`, `loop_both` (forward and backward), `ops_forward`, `ops_both`: pure ops, by chunks where
    there are any; where there is a native kernel `native_forward`, `native_both`; for RWKV-6 `written_forward`,
    `written_both`.
    """

    def __init__(self, version):
        import keras

        from bert4keras_rwkv.ops.kernels.native import why_not

        module = importlib.import_module(f"bert4keras_rwkv.ops.wkv{version}")
        wkv = getattr(module, f"wkv{version}")
        if version == "7":  # as the layer, whose decays keep within bounds
            wkv = functools.partial(wkv, bounded=True)
        forms = {"jax": jax_forms, "tensorflow": tensorflow_forms, "torch": torch_forms}[keras.backend.backend()]
        self.arrays = [keras.ops.convert_to_tensor(a) for a in inputs(version)]
        names = ["loop", "ops"] + ([] if why_not() else ["native"])
        named = {name: functools.partial(wkv, kernel=name) for name in names}
        for name, form in {**named, **({"written": as_written} if version == "6" else {})}.items():
            forward, both = forms(form)
            setattr(self, f"{name}_forward", lambda f=forward: self.clock(f))
            setattr(self, f"{name}_both", lambda f=both: self.clock(f))
            self.clock(forward)
            self.clock(both)

    def clock(self, function):
        started = time.perf_counter()
        function(*self.arrays)
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(lambda: Recurrence(sys.argv[1]))
