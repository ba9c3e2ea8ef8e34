"""Putting numbers where they are wanted: cast, transposed, aligned, with little memory beside source and target."""

import math
import mmap

import numpy as np

ALIGNMENT = 64  # JAX takes over an array that begins so, instead of copying it again
LARGE = 1 << 21  # bytes from which memory is taken in huge pages, where the system has them
ROWS = 16  # of a matrix that is transposed: their columns fill whole cache lines of the target; 3 times faster than all


def aligned(shape, dtype, make=np.empty):
    """An array in C order whose first byte lies at a multiple of `ALIGNMENT`, uninitialised or of zeros by `make`."""
    size = math.prod(shape) * dtype.itemsize
    room = _in_huge_pages(size + ALIGNMENT) if size >= LARGE else None
    if room is None:
        room = make(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _in_huge_pages(size):
    """So many bytes of zeros, which take less than half as long to be written first, and no longer to be read; None
    where there are no huge pages.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them, or no memory, which the caller is told of in NumPy's words
        return None
    return np.frombuffer(pages, np.uint8)


def laid_out(array, dtype):
    """A copy of `array` in C order and of this dtype."""
    laid = aligned(array.shape, dtype)
    turned = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    place(laid.T if turned else laid, array.T if turned else array)
    return laid


def read_whole(tensor):
    """What a `Tensor` reads, piece by piece, in C order."""
    array = aligned(tensor.shape, tensor.dtype)
    for where, part in tensor.parts():
        array[where] = part
    return array


def place(target, source):
    """target[...] = source, cast. Either may be a transposed view."""
    if target.ndim != 2 or target.flags.c_contiguous:
        np.copyto(target, source, casting="unsafe")
        return
    for start in range(0, len(source), ROWS):
        target[start : start + ROWS] = source[start : start + ROWS].astype(target.dtype)
