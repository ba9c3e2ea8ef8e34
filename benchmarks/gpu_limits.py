"""What a card can do: memory copied and bfloat16 products, by the backend of KERAS_BACKEND. A worker: DEVICE BYTES.

Commands: `copy n`, n times BYTES read and BYTES written; `product n`, one product of n x n matrices of random numbers.
"""

import sys
import time

from .worker import serve

REPEATS = 10  # products in a sample


def wait(x):
    """Until x has been computed."""
    if hasattr(x, "block_until_ready"):
        x.block_until_ready()
    elif getattr(x, "is_cuda", False):
        import torch

        torch.cuda.synchronize()


class Limits:
    def __init__(self, device, size):
        from keras import ops, random

        from bert4keras_rwkv.ops import backend

        if backend.device_kind() != device:
            raise RuntimeError(f"{backend.name()} does not see the card: its arrays live on {backend.device_kind()}")
        self.ops, self.random = ops, random
        self.array, self.factors = ops.ones((size // 4,), "float32"), {}
        self.copy(1)

    def copy(self, n):
        return self.clock(n, lambda: self.ops.negative(self.array))

    def product(self, n):
        if n not in self.factors:
            self.factors[n] = [self.random.normal((n, n), dtype="bfloat16", seed=seed) for seed in (1, 2)]
            self.product(n)
        return self.clock(REPEATS, lambda: self.ops.matmul(*self.factors[n])) / REPEATS

    def clock(self, n, function):
        started = time.perf_counter()
        for _ in range(n):
            result = function()
        wait(result)
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(lambda: Limits(sys.argv[1], int(sys.argv[2])))
