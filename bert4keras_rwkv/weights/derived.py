"""Tensors that are functions of others: what a format joined, cut or turned round, undone when it is read."""

import numpy as np

from bert4keras_rwkv.weights.tensors import Tensor


def derived(function, *tensors, dtype=None):
    """A `Tensor` that is `function(*arrays)`, read whole; its dtype is that of the first unless it is given.

    The shape is found without reading: ValueError or IndexError if the function cannot use these shapes.
    """
    dtype = dtype or tensors[0].dtype
    hollow = [np.broadcast_to(np.zeros((), np.int8), tensor.shape) for tensor in tensors]

    def read():
        return np.ascontiguousarray(function(*(tensor.read() for tensor in tensors)), dtype)

    return Tensor(function(*hollow).shape, dtype, read)


def vector(array):
    """As the official files have a vector of C numbers, [1, 1, C]."""
    return array.reshape(1, 1, -1)
