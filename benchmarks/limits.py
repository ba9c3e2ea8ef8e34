"""What the machine can do: memory read per second, and matrix products per second. A worker: ... limits THREADS.

A decode step at batch 1 must read every weight once, so the first limits decoding; prefill is matrix products, so the
second limits it. Both drift on shared machines, which is why they are measured in the same rounds as the rest.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .worker import serve

ARRAY_BYTES = 1 << 30  # far more than any cache


def reader():
    """The functions of limits.c, compiled for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        source = Path(__file__).with_name("limits.c")
        command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        functions = ctypes.CDLL(str(library))
    functions.new_array.restype = ctypes.c_void_p
    functions.new_array.argtypes = [ctypes.c_size_t]
    functions.read_array.restype = ctypes.c_float
    functions.read_array.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return functions


class Limits:
    """Seconds of `read(n)`, n times 1 GiB, of `gemm(m, k, n)`, one float32 product, and of `gemm16`, in bfloat16."""

    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.threads, self.functions = torch, threads, reader()
        self.array = self.functions.new_array(ARRAY_BYTES // 4)
        self.read(1)

    def read(self, n):
        started = time.perf_counter()
        for _ in range(n):
            self.functions.read_array(self.array, ARRAY_BYTES // 4, self.threads)
        return time.perf_counter() - started

    def gemm(self, m, k, n):
        return self.product(m, k, n, self.torch.float32)

    def gemm16(self, m, k, n):
        return self.product(m, k, n, self.torch.bfloat16)

    def product(self, m, k, n, dtype):
        a, b = self.torch.ones(m, k, dtype=dtype), self.torch.ones(n, k, dtype=dtype)
        times = []
        for _ in range(6):
            started = time.perf_counter()
            self.torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - started)
        return min(times[1:])


if __name__ == "__main__":
    serve(lambda: Limits(int(sys.argv[1])))
