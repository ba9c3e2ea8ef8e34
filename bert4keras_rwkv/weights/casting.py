"""What all writers share: one tensor in memory at a time, cast on the way."""

import numpy as np

from bert4keras_rwkv.weights.tensors import DTYPES, Tensors, WeightsError, as_tensors, dtype_named


def cast(mapping, dtype):
    """`mapping` as lazy `Tensors` whose floating tensors have `dtype`; None keeps every dtype, and what is packed."""
    tensors = as_tensors(mapping)
    if dtype is None:
        return tensors
    wanted = dtype_named(dtype)
    return Tensors(
        {name: _cast(name, tensors.entry(name), wanted) for name in tensors}, tensors.metadata, tensors.close
    )


def is_floating(dtype):
    """Whether numbers of this NumPy dtype have a fraction; bfloat16, which NumPy does not know, too."""
    return dtype == DTYPES["bfloat16"] or np.issubdtype(dtype, np.floating)


def _cast(name, entry, dtype):
    """The tensor with another dtype if it is a floating one."""
    if not is_floating(entry.dtype) or entry.dtype == dtype:
        return entry.plain()

    def converted(array):
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        if np.isinf(result).any() and not np.isinf(array).any():
            raise WeightsError(f"'{name}' has numbers too large for {dtype}. Choose bfloat16 or float32.")
        return result

    return entry.changed(converted, dtype)


def report(progress, done, tensors):
    """Call `progress(done, total)` if there is one."""
    if progress is not None:
        progress(done, len(tensors))


def bytes_of(tensors, name):
    """The bytes of one tensor, piece by piece, read now."""
    for _, array in tensors.entry(name).pieces():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
