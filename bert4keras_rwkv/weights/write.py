"""What all writers share: one tensor in memory at a time, cast on the way."""

import numpy as np

from bert4keras_rwkv.weights.tensors import Tensor, Tensors, as_tensors, dtype_named


def cast(mapping, dtype):
    """`mapping` as lazy `Tensors` whose floating tensors have `dtype`; None keeps every dtype."""
    tensors = as_tensors(mapping)
    if dtype is None:
        return tensors
    wanted = dtype_named(dtype)
    return Tensors({name: _cast(tensors.entry(name), wanted) for name in tensors}, tensors.metadata, tensors.close)


def _cast(entry, dtype):
    """The tensor with another dtype if it is a floating one."""
    floating = entry.dtype == dtype_named("bfloat16") or np.issubdtype(entry.dtype, np.floating)
    if not floating or entry.dtype == dtype:
        return entry
    return Tensor(entry.shape, dtype, lambda: entry.read().astype(dtype))


def report(progress, done, tensors):
    """Call `progress(done, total)` if there is one."""
    if progress is not None:
        progress(done, len(tensors))


def bytes_of(tensors, name):
    """The bytes of one tensor, read now, as one part."""
    array = np.ascontiguousarray(tensors[name])
    yield array.reshape(-1).view(np.uint8).data
