"""A GPU that is none: kernels compiled for a CPU by the emulator, and a driver that starts them."""

import ctypes
import functools
from pathlib import Path

import keras

from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.kernels import cuda, kept, library, native, on_jax, on_torch
from tests.ops.kernels.card import Card

HERE = Path(__file__).parent
STRICT = ("-std=c++20", "-Wall", "-Wextra", "-Werror")
UNLIKE_CUDA = ("-Wno-unknown-pragmas", "-Wno-clobbered", "-Wno-unused-parameter", "-Wno-unused-function")
SHARED = ("-O1", "-shared", "-fPIC", "-fno-gnu-unique", "-fvisibility=hidden")  # libc has a `step`, too
TARGET = "bert4keras_rwkv_stand_in"


def compile_with(*arguments):
    """Run the C++ compiler."""
    library._said(library._compiler(), map(str, arguments), "cannot compile")


def emulated(name, part, options, made, *more, sources=None):
    """The kernel of a file and a part ('forward' and others), as a library with `SHARED` in `more`.

    With a file that has `main` it is a program.
    """
    sources = sources or library.SOURCES
    asked = [option for option in options if option.startswith("-D")]
    source = f'-DSOURCE="{sources / name}"', f"-DKERNEL={part}"
    emulator = "-include", HERE / "emulator.h", f"-I{sources}", HERE / "emulated.cc"
    compile_with(*STRICT, *UNLIKE_CUDA, *asked, *source, *emulator, *more, "-o", made)


class Emulator:
    """What `nvrtc.Nvrtc` is for a GPU. sources: of the kernels; a change there gives other libraries."""

    architectures = (70, 90)

    def __init__(self, folder, sources=None):
        self.folder, self.sources = folder, sources or library.SOURCES

    def target(self, architecture):
        return architecture if architecture in self.architectures else None

    def cubin(self, name, source, headers, options, log=None):
        """The path of the library, as the driver's stand-in wants it."""
        part = next(x for x in ("forward", "step", "gradient") if f"-D{x.upper()}" in options)
        made = self.folder / f"{kept.digest([(name, source), *headers.items(), (repr(options), b'')])[:20]}.so"
        if not made.exists():
            emulated(name, part, options, made, *SHARED, sources=self.sources)
        return str(made).encode()

    def __str__(self):
        return "emulator"


class StandIn(Card):
    """The driver's stand-in, on which kernels run where they are asked to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.path = folder / "driver.so"
        if not self.path.exists():
            compile_with(*STRICT, "-O1", "-shared", "-fPIC", HERE / "stand_in_driver.cc", "-ldl", "-o", self.path)
        self.handle = ctypes.CDLL(str(self.path))

    def seed(self, number):
        """The order in which threads run from now on."""
        self.handle.stand_in_seed(number)

    def major(self, number):
        """What the device is from now on: 9 is sm_90."""
        self.handle.stand_in_major(number)

    def launches(self):
        return self.handle.stand_in_launches()

    def install(self, monkeypatch, sources=None):
        """Let JAX and PyTorch take this machine for one with a GPU, its kernels compiled from `sources`."""
        monkeypatch.setattr(cuda, "DRIVER", str(self.path))
        self.major(9)
        super().install(monkeypatch, sources)
        cuda._found["compiler"] = Emulator(self.folder, sources)
        monkeypatch.setattr(backend, "device_kind", lambda: "cuda")
        monkeypatch.setattr(backend, "device_of", lambda x: None)
        monkeypatch.setattr(native, "_device", {})
        monkeypatch.setitem(on_torch.RUN_ON, "cpu", lambda name, described, _: cuda.run(name, *described, None))
        if keras.backend.backend() == "jax":
            monkeypatch.setattr(on_jax, "HANDLERS", {"cpu": "rwkv_cuda_xla_stand_in"})
            monkeypatch.setattr(on_jax, "target", lambda: TARGET)
            monkeypatch.setattr(native, "_differentiable", {})
            for name in ("kernel", "register"):  # with a memory of their own
                monkeypatch.setattr(on_jax, name, functools.cache(getattr(on_jax, name).__wrapped__))

    def run(self, kernel, arguments, results):
        cuda.run(kernel, arguments, results, None)

    def forget(self):
        """What it loaded serves nobody else."""
