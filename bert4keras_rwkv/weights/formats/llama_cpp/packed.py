"""GGML's blocks as packed matrices, without floats between where a form of ours holds the same numbers.

Q8_0, Q4_0, Q4_1, Q5_0 and IQ4_NL are held exactly; Q4_K but for scales, which are products of two numbers there and are
rounded to float16 here. All others become int8 in groups of 32, by their numbers.
"""

import numpy as np

from bert4keras_rwkv.packing import UNIT, Scheme, in_halves, pack, unpacked
from bert4keras_rwkv.weights.formats.llama_cpp.blocks import PLAIN, numbers_of, stored_size
from bert4keras_rwkv.weights.packed import Difference
from bert4keras_rwkv.weights.tensors import Packed, WeightsError, dtype_named

HALF = np.dtype("float16")
AT_ONCE = 1 << 16  # bytes of blocks, whose numbers stay in a processor's cache: twice as fast as a megabyte
ONE = np.ones(1, HALF).view(np.uint8)


def packed_blocks(reader, name, stored, factor=1):
    """The `Packed` of a matrix that lies in blocks; None for what is no matrix, or no blocks.

    stored: a `header.Stored`. factor: a power of two that the numbers are multiplied by.
    """
    kind, shape = stored.kind, stored.shape
    if kind.name in PLAIN or len(shape) != 2:
        return None
    scheme, parts = HELD.get(kind.name, (Scheme(8), None))
    difference = Difference(kind.name, scheme, exact=parts is not None and kind.name not in ROUNDED)
    width = stored_size(name, shape[1:], kind)

    def piece(start, stop):
        data = reader.array(stored.offset + start * width, (stop - start) * width, np.dtype(np.uint8))
        found = None if parts is None else parts(data.reshape(stop - start, -1), kind)
        if difference.exact:
            return found
        numbers = numbers_of(reader, name, data, kind).reshape(stop - start, -1)
        found = pack(numbers, scheme) if found is None else found
        difference.add(numbers, unpacked(found, scheme, shape[1]))
        return found

    def read():
        arrays = {part: np.zeros(size, dtype_named(dtype)) for part, (size, dtype) in scheme.tensors(*shape).items()}
        difference.matrices += 1
        step = max(1, AT_ONCE // width)
        for start in range(0, shape[0], step):
            for part, array in piece(start, min(start + step, shape[0])).items():
                arrays[part][start : start + len(array), : array.shape[1]] = array
        return _times(reader, name, arrays, factor)

    return Packed(scheme, read, difference)


def _times(reader, name, arrays, factor):
    """The arrays of `factor` times the numbers; exact but for the largest. A scale that is no number is damage."""
    for part in {"scales", "least"} & set(arrays):
        if not np.isfinite(arrays[part]).all():
            raise reader.broken(f"a block of '{name}' has a scale that is no number")
        with np.errstate(over="ignore"):
            arrays[part] *= HALF.type(factor)
        if not np.isfinite(arrays[part]).all():
            raise WeightsError(f"'{name}' has numbers too large to be kept in few bits. Leave `quantization` out.")
    return arrays


def _halves(data, *columns):
    """float16 numbers (rows, blocks) at these bytes of each block."""
    return [np.ascontiguousarray(data[..., at : at + 2]).view(HALF)[..., 0] for at in columns]


def _q8_0(data, kind):
    data = data.reshape(len(data), -1, 34)
    (scales,) = _halves(data, 0)
    return {"packed": data[..., 2:].reshape(len(data), -1).view(np.int8), "scales": scales}


def _q4_0(data, kind):
    data = data.reshape(len(data), -1, 18)
    (scales,) = _halves(data, 0)
    return {"packed": data[..., 2:].reshape(len(data), -1), "scales": scales}


def _q4_1(data, kind):
    data = data.reshape(len(data), -1, 20)
    scales, least = _halves(data, 0, 2)
    return {"packed": data[..., 4:].reshape(len(data), -1), "scales": scales, "least": least}


def _one_scale(data, kind):
    """Blocks of 32 whole numbers of 8 bits and less times a scale, which comes first: with a scale of 1 they are it."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    data = data.reshape(len(data), -1, GGML_QUANT_SIZES[kind][1])
    (scales,) = _halves(data, 0)
    whole = np.concatenate([np.broadcast_to(ONE, (*scales.shape, 2)), data[..., 2:]], axis=-1)
    numbers = dequantize(whole.reshape(-1), kind).reshape(len(data), -1)
    return {"packed": numbers.astype(np.int8), "scales": scales}


def _q4_k(data, kind):
    """Eight groups of 32 numbers, whose scales and least values are 6 bits times a scale of the block."""
    from gguf.quants import Q4_K

    blocks = data.reshape(-1, 144)
    by, least_by = (half.astype("float32")[:, None] for half in _halves(blocks, 0, 2))
    scales, least = Q4_K.get_scale_min(blocks[:, 4:16])
    pairs = blocks[:, 16:].reshape(-1, 4, UNIT)
    numbers = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(data), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        scales, least = ((by * scales).astype(HALF), (-least_by * least).astype(HALF))
    return {
        "packed": in_halves(numbers),
        "scales": scales.reshape(len(data), -1),
        "least": least.reshape(len(data), -1),
    }


# GGML's type -> the scheme, and the parts of rows of bytes.
HELD = {
    "Q8_0": (Scheme(8), _q8_0),
    "Q5_0": (Scheme(8), _one_scale),
    "IQ4_NL": (Scheme(8), _one_scale),
    "Q4_0": (Scheme(4, least=False), _q4_0),
    "Q4_1": (Scheme(4), _q4_1),
    "Q4_K": (Scheme(4), _q4_k),
}
ROUNDED = ("Q4_K",)
