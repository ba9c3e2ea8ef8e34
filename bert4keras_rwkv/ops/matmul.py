"""Matrices that are packed into fewer bytes, and products with them.

`packing` says what a packed matrix is.

Where a matrix has 8 or 4 bits, what is multiplied by it is rounded too: each 32 numbers to int8 with a scale of their
own. So few rows need no arithmetic but that of whole numbers; it is done for any number of rows, so that reading a text
at once and token by token are the same function.
"""

from dataclasses import dataclass

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops import backend
from bert4keras_rwkv.ops.backend import dtype_name, nothing, wide_matmul
from bert4keras_rwkv.ops.kernels import cuda
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.ops.kernels.native import device, multiplies_many, product
from bert4keras_rwkv.packing import LARGEST, MOST, NAMES, PAIR, UNIT, Scheme, pack

FEW = 16  # rows; of more, a packed matrix is unpacked for them all, unless this processor can
SEVERAL = {16: 6, 8: 12, 4: 12}  # bits -> rows from which the kernels for many are faster
TINY = 1e-30  # as in src/packed.h
MATRICES = ("float32", "bfloat16", "float16")  # that `dense` multiplies by natively

__all__ = ["FEW", "LARGEST", "PAIR", "Scheme", "dense", "matmul", "pack", "rounded", "unpack"]  # some of `packing`


def unpack(tensors, scheme, inputs, dtype="float32"):
    """The matrix (outputs, inputs) that packed tensors stand for, as a tensor."""
    packed = tensors["packed"]
    if scheme.bits == 16:
        return ops.cast(packed, dtype)[:, :inputs]
    outputs, groups = tensors["scales"].shape
    numbers = packed
    if scheme.bits == 4:
        bytes_of = ops.reshape(ops.cast(packed, "int32"), (outputs, -1, 1, UNIT // 2))
        numbers = ops.concatenate([bytes_of % 16, bytes_of // 16], axis=2)
    numbers = ops.cast(ops.reshape(numbers, (outputs, groups, -1)), "float32")
    scales = ops.cast(tensors["scales"], "float32")[..., None]
    if scheme.bits == 4:
        least = ops.cast(tensors["least"], "float32")[..., None] if scheme.least else -8.0 * scales
        numbers = numbers * scales + least
    else:
        numbers = numbers * scales
    return ops.cast(ops.reshape(numbers, (outputs, -1))[:, :inputs], dtype)


def matmul(x, tensors, scheme, kernel="auto"):
    """x (..., inputs) times a packed matrix (outputs, inputs), transposed: (..., outputs) float32.

    Rows go to a native kernel where there is one for so many (`product_for`), which reads the matrix as it is packed.
    Else, and for gradients in x, which pass the rounding of x as if it were not there, the matrix is unpacked.
    """
    inputs, leading = x.shape[-1], ops.shape(x)[:-1]
    rows = ops.reshape(x, (-1, inputs)) if 0 not in x.shape else ops.zeros((0, inputs), "float32")
    if rows.shape[0] == 0:
        return ops.zeros((*leading, tensors["packed"].shape[0]), "float32")
    y, where = None, _native_on(rows, kernel)
    if where is not None and (name := product_for(scheme, rows.shape[0], where)) is not None:
        y = product(name, rows, tensors_of(tensors, scheme), Slope(scheme, inputs))
    if y is None:
        y = wide(rows if scheme.bits == 16 else rounded(rows), unpack(tensors, scheme, inputs))
    return ops.reshape(y, (*leading, y.shape[-1]))


def product_for(scheme, rows, where="cpu"):
    """The native kernel that multiplies so many rows, None: the matrix is unpacked for them. where: 'cpu' or 'cuda'."""
    if where == "cuda":
        kind = cuda.product_of(rows)
    elif rows >= SEVERAL[scheme.bits] and multiplies_many(scheme.bits):
        kind = "product_many"
    else:
        kind = "product" if rows <= FEW else None
    return f"{kind}_{scheme.name}" if rows > 0 and kind else None


def _native_on(rows, kernel):
    """The kind of device whose native kernels are chosen for these rows, 'cpu' or 'cuda', or None."""
    known = isinstance(rows.shape[0], int)
    where = backend.device_of(rows)
    return device(where) if known and chosen(kernel, rows.dtype, tuple(rows.shape), where) == "native" else None


def tensors_of(tensors, scheme):
    """The tensors of a matrix in the order in which a kernel takes them; one that there is not is empty."""
    given = [ops.convert_to_tensor(tensors[name]) for name in NAMES[scheme.bits] if name in tensors]
    return [*given, *(nothing("float16", given[0]) for name in NAMES[scheme.bits] if name not in tensors)]


@dataclass(frozen=True)
class Slope:
    """From the slope of a product to that of its rows; a packed matrix has none."""

    scheme: Scheme
    inputs: int

    def __call__(self, dy, x, tensors):
        named = dict(zip(NAMES[self.scheme.bits], tensors, strict=True))
        return ops.matmul(dy, unpack(named, self.scheme, self.inputs)), *(None for _ in tensors)


def dense(x, matrix, kernel="auto"):
    """x (R, I) times a matrix (I, O) of the same dtype, or x float32 and the matrix in halves: (R, O) float32.

    A few rows go to a native kernel where there is one. More halves are multiplied as the backend does: with float32
    sums, and on PyTorch and TensorFlow with a result that is rounded to halves before it is float32 again.
    """
    matrix = ops.convert_to_tensor(matrix)
    if _native_on(x, kernel) == "cpu" and 0 < x.shape[0] <= FEW and dtype_name(matrix) in MATRICES:
        y = product("product_dense", x, [matrix], dense_slope)
        if y is not None:
            return y
    return wide_matmul(x, ops.cast(matrix, dtype_name(x)))


def dense_slope(dy, x, tensors):
    """From the slope of `dense` to those of x and of the matrix."""
    (matrix,) = tensors
    matrix, x = (ops.cast(each, "float32") for each in (matrix, x))
    return ops.matmul(dy, ops.transpose(matrix)), ops.matmul(ops.transpose(x), dy)


def rounded(rows):
    """rows (R, inputs), of each 32 numbers the nearest of 255, float32. Its gradient is that of `rows` themselves.

    Where all 32 are below `TINY` they become zero: what 127 is divided by must not be so small that that is infinite.
    """
    rows = ops.cast(rows, "float32")
    inputs = rows.shape[1]
    units = ops.reshape(ops.pad(rows, ((0, 0), (0, -inputs % UNIT))), (-1, -(-inputs // UNIT), UNIT))
    most = ops.max(ops.abs(units), axis=-1, keepdims=True)
    tiny = most < TINY
    inverse = ops.divide(float(MOST[8]), ops.where(tiny, 1.0, most))  # PyTorch's `/` would round twice
    whole = ops.round(units * ops.where(tiny, 0.0, inverse))
    nearest = ops.reshape(whole * (most / MOST[8]), (-1, -(-inputs // UNIT) * UNIT))[:, :inputs]
    return rows + ops.stop_gradient(nearest - rows)


def wide(rows, matrix):
    """rows (R, inputs) times a matrix (outputs, inputs), transposed, float32."""
    return ops.matmul(ops.cast(rows, "float32"), ops.transpose(ops.cast(matrix, "float32")))
