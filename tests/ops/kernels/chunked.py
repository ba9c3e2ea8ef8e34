"""Kernels by chunks, compiled for a CPU by the emulator and run on NumPy arrays."""

import ctypes

import ml_dtypes
import numpy as np

from bert4keras_rwkv.ops.kernels import cuda
from bert4keras_rwkv.ops.kernels.native import CHUNK
from tests.ops.kernels import guards
from tests.ops.kernels.stand_in import SHARED, emulated

DTYPES = {"float": np.dtype("float32"), "bf16": np.dtype(ml_dtypes.bfloat16)}


class Kernel:
    """One kernel of wkv6_chunked.cu or wkv7_chunked.cu. sources: instead of the package's."""

    def __init__(self, folder, name, part, N, columns, inputs="bf16", decay="float", sources=None):
        self.name, self.part, self.N, self.columns, self.inputs, self.decay = name, part, N, columns, inputs, decay
        made = (sources or folder) / f"{name}-{part}-{N}-{columns}-{inputs}-{decay}.so"
        if not made.exists():
            options = [f"-D{part.upper()}", f"-DN={N}", f"-DCOLUMNS={columns}", f"-DINPUT={inputs}", f"-DDECAY={decay}"]
            emulated(cuda.SOURCES[f"{name}_chunked"], part, options, made, *SHARED, sources=sources)
        self.handle = ctypes.CDLL(str(made))

    def launch(self, seed, blocks, threads, arguments):
        """arguments: arrays, None for what is not given, and numbers."""
        values = [x if isinstance(x, int) else None if x is None else x.ctypes.data for x in arguments]
        kinds = [ctypes.c_int if isinstance(x, int) else ctypes.c_void_p for x in arguments]
        values = [kind(x) for kind, x in zip(kinds, values, strict=True)]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self.handle.emulated_launch(seed, blocks, threads, addresses)

    def stored(self, xs):
        """The inputs as the kernel takes them."""
        kinds = [self.inputs, self.decay, self.inputs, self.inputs, *([self.inputs] * 2 if len(xs) == 6 else ["float"])]
        return [x.astype(DTYPES[kind]) for x, kind in zip(xs, kinds, strict=True)]

    def forward(self, seed, xs, state, start, flags, keep=True):
        """y, the last state, and if they are to be kept the checkpoints (, of RWKV-7 what was read)."""
        B, T, H, N = xs[0].shape
        results = [guards.guarded((B, T, H, N)), guards.guarded((B, H, N, N))]
        results += [guards.guarded((B, H, -(-T // CHUNK), N, N))] if keep else [None]
        if self.name == "wkv7":
            results += [guards.guarded((B, T, H, N))] if keep else [None]
        given = [*self.stored(xs), state, start, flags, *(x and x[1] for x in results), T, H]
        self.launch(seed, B * H * (N // self.columns), 2 * self.columns, given)
        return [guards.read(*x) for x in results if x]

    def gradient(self, seed, xs, state, start, flags, kept, dy, dlast):
        """The gradients of xs, of the state and of the start, if there is one. kept: what `forward` gave beside."""
        B, T, H, N = xs[0].shape
        stored = self.stored(xs)
        results = [guards.guarded(x.shape, x.dtype) for x in (*stored, state, state)]
        if start is None:
            results[-1] = None
        given = [*stored, state, start, flags, *kept, dy, dlast, *(x and x[1] for x in results), T, H]
        self.launch(seed, B * H, 2 * N, given)
        return [guards.read(*x) for x in results if x]


def rounded(x):
    """As bfloat16 has it."""
    return x.astype(DTYPES["bf16"]).astype("float32")


def inputs(rng, name, T, N, decay="any", masks=True, B=2, H=2):
    """xs, whose values bfloat16 has, a state, a start and flags, both None without masks.

    decay: of a step, "any" from e^-1e-6 to e^-60, or the logarithm of all.
    """

    def normal(*shape):
        return rounded(rng.standard_normal(shape))

    r, k, v = (normal(B, T, H, N) for _ in range(3))
    some = -np.exp(rng.uniform(np.log(1e-6), np.log(60), (B, T, H, N)))
    xs = [r, rounded(some if decay == "any" else np.full_like(some, decay)), k, v]
    if name == "wkv6":
        xs.append(normal(B, H, N))
    else:
        kk = normal(B, T, H, N)
        kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
        xs += [rounded(x) for x in (-kk, kk * rng.random((B, T, H, N)))]
    state, start = normal(B, H, N, N), normal(B, H, N, N)
    flags = rng.choice(np.arange(4, dtype="uint8"), (B, T), p=(0.7, 0.14, 0.14, 0.02))
    return xs, state, *((start, flags) if masks else (None, None))
