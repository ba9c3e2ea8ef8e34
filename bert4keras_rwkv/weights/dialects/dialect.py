"""What a dialect is, and the changes of shape that dialects share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bert4keras_rwkv.weights.transforms import Transform

logger = logging.getLogger("bert4keras_rwkv")


@dataclass(frozen=True)
class Dialect:
    """How a project names and lays out the tensors of a model.

    speaks(shapes): whether tensors with these names (without 'model.' and the like) and shapes are in it.
    read(tensors): such `Tensors` under official names. write(tensors, config): official `Tensors` in this dialect.
    All lazy; `read` undoes `write` exactly. A model that a dialect cannot express is a `WeightsError`.
    """

    speaks: Callable
    read: Callable
    write: Callable


# The last two axes change places, [in, out] to [out, in], of a stack of matrices too.
TURNED = Transform(load=lambda array: np.swapaxes(array, -1, -2), save=lambda array: np.swapaxes(array, -1, -2))


def without_state(tensors, reason):
    """Name -> `Tensor` without a merged initial state, if there is one; the warning says who cannot hold it."""
    left = [name for name in tensors if name.endswith(".time_state")]
    if left:
        logger.warning("Left out: the initial state merged into these weights ('%s', ...), which %s.", left[0], reason)
    return {name: tensors.entry(name) for name in tensors if name not in left}


def layers_of(names, prefix):
    """How many layers there are in names like '`prefix`3.attn.k_proj.weight'."""
    numbers = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    return len([number for number in numbers if number.isdigit()])
