"""A GPU under test: what its kernels were asked for, and its memory, by the driver alone."""

import ctypes
import functools
import math

from bert4keras_rwkv.ops.kernels import cuda, library
from tests.ops.kernels import guards

BYTES = {0: 4, 1: 2, 2: 1, 3: 1, 4: 2}  # of a number of each dtype in src/tensors.h


class Card:
    """The GPU that is here. folder: of what is compiled; keys: what was asked for since it was installed."""

    def __init__(self, folder):
        self.folder, self.keys = folder, []

    def seed(self, number):
        """The order in which threads run is the card's own."""

    def launches(self):
        return len(self.keys)

    def install(self, monkeypatch, sources=None):
        """Nothing is compiled yet, or loaded. sources: of the kernels, instead of the package's."""
        library.library()  # found in the user's cache folder
        if sources is not None:
            monkeypatch.setattr(library, "SOURCES", sources)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder))
        monkeypatch.setattr(cuda, "_found", {})
        monkeypatch.setattr(cuda, "cubin", functools.partial(self._cubin, cuda.cubin))
        self.keys.clear()
        cuda.device()

    def _cubin(self, make, key):
        self.keys.append(key)
        return make(key)

    def forget(self):
        """Forget what was loaded: it may be of other sources."""
        cuda._call("rwkv_cuda_open", cuda.DRIVER.encode(), cuda._missing)

    def run(self, kernel, arguments, results, guard=guards.GUARD):
        """Run a kernel on copies of arrays in the card's memory. Each result has `guard` numbers around it, which come
        back with it.
        """
        memory = Memory(cuda.DRIVER)
        try:
            given = [memory.holding(x) for x in arguments]
            made = [memory.holding(x, guard) for x in results]
            cuda.run(kernel, given, made, None)
            memory.bring_back(len(given))
        finally:
            memory.free()


class Memory:
    """Copies of arrays on the first device, in the context that JAX and PyTorch use there, too."""

    def __init__(self, driver):
        self.driver, self.copies, context = ctypes.CDLL(driver), [], ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        if failed := getattr(self.driver, name)(*arguments):
            raise RuntimeError(f"{name} fails with {failed}")

    def holding(self, tensor, guard=0):
        """A copy of a tensor, (address, dtype, shape), with the numbers around it."""
        address, dtype, shape = tensor
        before, size, copy = guard * BYTES[dtype], (math.prod(shape) + 2 * guard) * BYTES[dtype], ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(copy), ctypes.c_size_t(max(size, 1)))
        self.copies.append((ctypes.c_void_p(address - before), copy, ctypes.c_size_t(size)))
        self.call("cuMemcpyHtoD_v2", copy, *self.copies[-1][::2])
        return copy.value + before, dtype, shape

    def bring_back(self, first):
        """Overwrite the arrays from the `first` on with their copies, once the kernel has ended."""
        for array, copy, size in self.copies[first:]:
            self.call("cuMemcpyDtoH_v2", array, copy, size)

    def free(self):
        for _, copy, _ in self.copies:
            self.driver.cuMemFree_v2(copy)
