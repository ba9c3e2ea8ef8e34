"""The floor of a training step: its matrix products and nothing else, on JAX. Argument: version. Command: `step`."""

import sys
import time

import numpy as np

from .peer_training import BATCH, LENGTH, built
from .worker import serve


def shapes(version):
    """(inputs, outputs) of every projection, the head included."""
    kernels = [v.shape for v in built(version).backbone.variables if v.name == "kernel"]
    return [tuple(shape) for shape in kernels if len(shape) == 2]


class Products:
    """For each projection W: X W, its gradient in X, and its gradient in W."""

    def __init__(self, version):
        import jax

        self.jax = jax
        random = np.random.default_rng(0)
        self.kernels = [random.standard_normal(shape, "float32") for shape in shapes(version)]
        widths = sorted({size for shape in shapes(version) for size in shape})
        self.rows = {width: random.standard_normal((BATCH * LENGTH, width), "float32") for width in widths}
        self.kernels, self.rows = jax.device_put((self.kernels, self.rows))

        @jax.jit
        def products(kernels, rows):
            total = []
            for kernel in kernels:
                inputs, outputs = kernel.shape
                x, dy = rows[inputs] + len(total), rows[outputs]  # no product is another's
                y, dx, dw = x @ kernel, dy @ kernel.T, x.T @ dy
                total.append(y.sum() + dx.sum() + dw.sum())
            return total

        self.products = products
        self.step()

    def step(self):
        started = time.perf_counter()
        self.jax.block_until_ready(self.products(self.kernels, self.rows))
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(lambda: Products(sys.argv[1]))
