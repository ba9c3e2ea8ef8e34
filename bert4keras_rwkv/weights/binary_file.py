"""Plain reads from a file that nobody vouches for: nothing beyond its end is believed, nothing is mapped."""

import os

import numpy as np

from bert4keras_rwkv import untrusted
from bert4keras_rwkv.weights.copying import aligned
from bert4keras_rwkv.weights.tensors import Tensor, WeightsError, count

LONGEST_LINE = 4096


def regular(path):
    """`path`, if no pipe or device is there."""
    return untrusted.regular(path, "Weights", WeightsError)


class BinaryFile:
    """A file open for reading, with its size. Asking for more than there is raises before anything is allocated.

    It also has the three methods an unpickler wants of a file: `read`, `readline`, and `readinto`.
    """

    def __init__(self, path):
        self.path = str(path)
        self._file = open(regular(path), "rb")  # noqa: SIM115 - open as long as the weights are
        self.size = os.fstat(self._file.fileno()).st_size

    def close(self):
        self._file.close()

    def tell(self):
        return self._file.tell()

    def seek(self, offset):
        self._file.seek(self._inside(offset, 0))

    def read(self, size):
        """The next `size` bytes, all of them."""
        self._inside(self.tell(), size)
        return self._file.read(size)

    def readline(self):
        """Bytes up to and with the next newline; without one nearby the file is not what it claims."""
        line = self._file.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise self.broken("a line in it does not end")
        return line

    def readinto(self, buffer):
        """Fill `buffer` with the next bytes."""
        view = memoryview(buffer).cast("B")
        self._inside(self.tell(), view.nbytes)
        return self._fill(view)

    def array(self, offset, elements, dtype):
        """`elements` little-endian numbers from `offset` on, as a new array (elements,)."""
        self._inside(offset, elements * dtype.itemsize)
        array = aligned((elements,), dtype)
        self._file.seek(offset)
        self._fill(memoryview(array.view(np.uint8)))
        return array

    def tensor(self, offset, shape, dtype):
        """A `Tensor` whose elements lie in order from `offset` on."""
        if not shape:
            return Tensor(shape, dtype, lambda: self.array(offset, 1, dtype).reshape(()))

        def rows(start, stop):
            part = (stop - start, *shape[1:])
            skipped = start * count(shape[1:]) * dtype.itemsize
            return self.array(offset + skipped, count(part), dtype).reshape(part)

        return Tensor(shape, dtype, lambda: rows(0, shape[0]), rows)

    def broken(self, why):
        """The error for a file that is damaged or no weight file."""
        why = str(why).rstrip(".")
        return WeightsError(f"'{self.path}' cannot be read: {why}. Is it a weight file, and was it downloaded whole?")

    def named(self, error):
        """An error that says which file it is about."""
        return error if self.path in str(error) else WeightsError(f"'{self.path}': {error}")

    def _fill(self, view):
        """Fill the bytes of `view`; a read may give less than asked for."""
        done = 0
        while done < view.nbytes:
            got = self._file.readinto(view[done:])
            if not got:
                raise self.broken("it became shorter while it was read")
            done += got
        return done

    def _inside(self, offset, size):
        """`offset` if so many bytes lie there inside the file."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.broken(f"it has {self.size} bytes, and bytes {offset} to {offset + size} are asked for")
        return offset
