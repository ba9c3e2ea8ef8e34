"""Kernels by chunks, compiled for a CPU by the emulator and run on NumPy arrays."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from bert4keras_rwkv.ops.kernels import library
from bert4keras_rwkv.ops.kernels.native import CHUNK

HERE = Path(__file__).parent
SOURCES = library.SOURCES
GUARD = 64  # numbers before and after each result
STRICT = ("-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror")
UNLIKE_CUDA = ("-Wno-unknown-pragmas", "-Wno-clobbered", "-Wno-unused-parameter", "-Wno-unused-function")


class Kernel:
    """One kernel of wkv6_chunked.cu or wkv7_chunked.cu. text: instead of the source as it is."""

    def __init__(self, folder, name, part, N, columns, inputs="bf16", decay="float", text=None):
        self.name, self.part, self.N, self.columns, self.inputs, self.decay = name, part, N, columns, inputs, decay
        source = SOURCES / f"{name}_chunked.cu"
        made = folder / f"{name}-{part}-{N}-{columns}-{inputs}-{decay}{'' if text is None else f'-{hash(text)}'}.so"
        if text is not None:
            source = made.with_suffix(".cu")
            source.write_text(text)
        if not made.exists():
            macros = [f"-D{part.upper()}", f"-DN={N}", f"-DCOLUMNS={columns}", f"-DINPUT={inputs}", f"-DDECAY={decay}"]
            macros += [f'-DSOURCE="{source}"', f"-DKERNEL={part}"]
            emulator = ["-include", HERE / "emulator.h", f"-I{SOURCES}", HERE / "emulated.cc"]
            shared = ["-shared", "-fPIC", "-fno-gnu-unique", "-fvisibility=hidden"]
            command = [library._compiler(), *STRICT, *UNLIKE_CUDA, *macros, *shared, *emulator, "-o", made]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
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
        return [to_bf16(x) if kind == "bf16" else x for x, kind in zip(xs, kinds, strict=True)]

    def forward(self, seed, xs, state, start, flags, keep=True):
        """y, the last state, and if they are to be kept the checkpoints (, of RWKV-7 what was read)."""
        B, T, H, N = xs[0].shape
        results = [Result((B, T, H, N)), Result((B, H, N, N))]
        results += [Result((B, H, -(-T // CHUNK), N, N))] if keep else [None]
        if self.name == "wkv7":
            results += [Result((B, T, H, N))] if keep else [None]
        given = [*self.stored(xs), state, start, flags, *(x and x.inside for x in results), T, H]
        self.launch(seed, B * H * (N // self.columns), 2 * self.columns, given)
        return [x.read() for x in results if x]

    def gradient(self, seed, xs, state, start, flags, kept, dy, dlast):
        """The gradients of xs, of the state and of the start, if there is one. kept: what `forward` gave beside."""
        B, T, H, N = xs[0].shape
        stored = self.stored(xs)
        results = [Result(x.shape, x.dtype) for x in (*stored, state, state)]
        if start is None:
            results[-1] = None
        given = [*stored, state, start, flags, *kept, dy, dlast, *(x and x.inside for x in results), T, H]
        self.launch(seed, B * H, 2 * N, given)
        return [x.read() for x in results if x]


class Result:
    """An array amid others that a kernel must leave alone."""

    def __init__(self, shape, dtype="float32"):
        self.whole = np.zeros(int(np.prod(shape)) + 2 * GUARD, dtype)
        self.whole.view("uint8")[:] = 0xFF  # NaN
        self.inside = self.whole[GUARD : len(self.whole) - GUARD].reshape(shape)

    def read(self):
        for part in (self.whole[:GUARD], self.whole[-GUARD:]):
            assert (part.view("uint8") == 0xFF).all()
        return from_bf16(self.inside) if self.inside.dtype == np.uint16 else self.inside


def to_bf16(x):
    bits = np.ascontiguousarray(x, "float32").view("uint32").astype("uint64")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")


def from_bf16(bits):
    return (bits.astype("uint32") << 16).view("float32")


def inputs(rng, name, T, N, decay="any", masks=True, B=2, H=2):
    """xs, whose values bfloat16 has, a state, a start and flags, both None without masks.

    decay: of a step, "any" from e^-1e-6 to e^-60, or the logarithm of all.
    """

    def normal(*shape):
        return from_bf16(to_bf16(rng.standard_normal(shape)))

    r, k, v = (normal(B, T, H, N) for _ in range(3))
    some = -np.exp(rng.uniform(np.log(1e-6), np.log(60), (B, T, H, N)))
    xs = [r, from_bf16(to_bf16(some if decay == "any" else np.full_like(some, decay))), k, v]
    if name == "wkv6":
        xs.append(normal(B, H, N))
    else:
        kk = normal(B, T, H, N)
        kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
        xs += [from_bf16(to_bf16(x)) for x in (-kk, kk * rng.random((B, T, H, N)))]
    state, start = normal(B, H, N, N), normal(B, H, N, N)
    flags = rng.choice(np.arange(4, dtype="uint8"), (B, T), p=(0.7, 0.14, 0.14, 0.02))
    return xs, state, *((start, flags) if masks else (None, None))
