"""Tensors stored in GGML's blocks: a few dozen numbers that share a scale. The `gguf` package knows the blocks."""

import functools

import numpy as np

from bert4keras_rwkv.weights.tensors import Tensor, WeightsError, count, dtype_named

# GGML's types that NumPy or ml_dtypes have.
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def stored_tensor(reader, name, offset, shape, kind):
    """A `Tensor` whose elements lie from `offset` on in GGML's type `kind`; blocks become float32 as rows are read.

    kind: a `gguf.GGMLQuantizationType`. Raises `WeightsError` for a type without fractions, rows that are no whole
    blocks, or bytes beyond the end of the file.
    """
    size = stored_size(name, shape, kind)
    if offset + size > reader.size:
        raise reader.broken(f"'{name}' should end at byte {offset + size}, and it has {reader.size}")
    if kind.name in PLAIN:
        return reader.tensor(offset, shape, dtype_named(PLAIN[kind.name]))
    step = stored_size(name, shape[1:], kind) if len(shape) > 1 else size

    def rows(start, stop):
        data = reader.array(offset + start * step, (stop - start) * step, np.dtype(np.uint8))
        return numbers_of(reader, name, data, kind).reshape(stop - start, *shape[1:])

    def read():
        return rows(0, shape[0]) if len(shape) > 1 else numbers_of(reader, name, rows_of_one(), kind)

    def rows_of_one():
        return reader.array(offset, size, np.dtype(np.uint8))

    return Tensor(shape, dtype_named("float32"), read, rows if len(shape) > 1 else None)


def metadata_of(types, sizes):
    """What the `metadata` of a file says of its types: `types`, name -> GGML's; `blocks`, the same in small letters for
    those that are blocks of numbers; `stored_bytes` of all. sizes: of the tensors of the file, in bytes.
    """
    blocks = {name: kind.lower() for name, kind in types.items() if kind not in PLAIN}
    return {"types": types, "blocks": blocks, "stored_bytes": sum(sizes)}


def stored_size(name, shape, kind):
    """Bytes of a tensor in GGML's type `kind`."""
    from gguf import GGML_QUANT_SIZES

    if kind.name not in PLAIN and not _dequantisable(kind):
        raise WeightsError(f"'{name}' is stored as {kind.name}, which the `gguf` package cannot turn into numbers.")
    block, size = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block:
        raise WeightsError(f"'{name}' has the shape {shape}. Rows of {kind.name} have a multiple of {block} elements.")
    return count(shape) // block * size


def numbers_of(reader, name, data, kind):
    """The float32 numbers (n,) in bytes of whole blocks. A scale that is no number is damage."""
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        numbers = dequantize(data, kind)
    if not np.isfinite(numbers).all():
        raise reader.broken(f"a block of '{name}' has a scale that is no number")
    return numbers


@functools.cache
def _dequantisable(kind):
    """Whether the library has the formula of this type."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True
