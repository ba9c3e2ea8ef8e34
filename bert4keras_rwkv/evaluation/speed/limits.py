"""What the machine can do, as a measured program: memory read, and matrix products, in a second.

A step of one token reads every weight once, so the first limits writing; reading a prompt is matrix products, which the
second limits. Both drift on shared machines, so they are measured in the same rounds as the rest.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bert4keras_rwkv.evaluation.speed.serving import serve
from bert4keras_rwkv.evaluation.speed.settings import ARRAY_BYTES, COLUMNS, INNER, ROWS


class Limits:
    """Adds up a large array, in threads, and multiplies in float32, by NumPy."""

    def __init__(self, options):
        self._pool = ThreadPoolExecutor(options["threads"])
        self._parts = np.array_split(np.ones(ARRAY_BYTES // 8, "int64"), options["threads"])
        self._factors = np.ones((ROWS, INNER), "float32"), np.ones((INNER, COLUMNS), "float32")
        self.facts = {"versions": {"numpy": np.__version__}}

    def read(self, times):
        """Seconds for so many times `ARRAY_BYTES`. Sums of whole numbers are quick, and let other threads run."""
        started = time.perf_counter()
        for _ in range(times):
            list(self._pool.map(np.add.reduce, self._parts))
        return time.perf_counter() - started

    def product(self, times):
        """Seconds for so many products."""
        started = time.perf_counter()
        for _ in range(times):
            self._factors[0] @ self._factors[1]
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(Limits)
