"""How a tensor of a file becomes a variable of a model, and back. Pure shapes and orders: no value changes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A pair of inverse functions. `load(*file arrays) -> variable`; `save(variable) -> file array`, or a tuple of
    them.
    """

    load: Callable
    save: Callable


def stacked(*parts):
    """Vectors of a file, [1, 1, C] or (C,) each, as the rows of one array (number of them, C)."""
    return np.stack([part.reshape(-1) for part in parts])


def split(array):
    """The rows of (n, C) as a file has them: n arrays [1, 1, C]."""
    return tuple(row.reshape(1, 1, -1) for row in array)


def columns(parts):
    """A `Transform` of [C, parts * D], the factors of so many low-rank products side by side, to (parts, C, D)."""
    return Transform(
        load=lambda array: array.reshape(array.shape[0], parts, -1).swapaxes(0, 1),
        save=lambda array: array.swapaxes(0, 1).reshape(array.shape[1], -1),
    )


IDENTITY = Transform(load=lambda array: array, save=lambda array: array)
TRANSPOSE = Transform(load=lambda array: array.T, save=lambda array: array.T)  # Linear [out, in] to a kernel (in, out)
VECTOR = Transform(
    load=lambda array: array.reshape(-1), save=lambda array: array.reshape(1, 1, -1)
)  # [1, 1, C] to (C,)
STACK = Transform(load=stacked, save=split)
