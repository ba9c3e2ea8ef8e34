"""Matrices that are packed into fewer bytes, and products with them.

A packed matrix has a row for each output. A number is 16, 8 or 4 bits: bfloat16 as it is; int8 times the scale of its
group; 0 to 15 times the scale of its group, and its least value added (without one: 8 is zero). A group is some numbers
of a row one after another. Scales and least values are float16.

Where a matrix has 8 or 4 bits, what is multiplied by it is rounded too: each 32 numbers to int8 with a scale of their
own. So few rows need no arithmetic but that of whole numbers; it is done for any number of rows, so that reading a text
at once and token by token are the same function.

The layouts of 8 bits, and of 4, in groups of 32 are those of GGUF's Q8_0, Q4_0 and Q4_1, but for where scales lie.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.ops.backend import device_of
from bert4keras_rwkv.ops.kernels.choose import chosen
from bert4keras_rwkv.ops.kernels.native import device, packed_product

UNIT = 32  # numbers in the smallest group
PAIR = 2 * UNIT  # what the numbers of a row of 4 bits are a multiple of
LARGEST = 2.0**14  # of numbers that are packed: scales are float16
FEW = 16  # rows; of more, the matrix is unpacked for them all
BITS = (16, 8, 4)
MOST = {8: 127, 4: 15}
NAMES = {16: ("packed",), 8: ("packed", "scales"), 4: ("packed", "scales", "least")}


@dataclass(frozen=True)
class Scheme:
    """How a matrix is packed. bits: of a number: 16 (bfloat16), 8 or 4.

    group: numbers that have a scale, a multiple of 32; None: a row has one. least: whether a group of 4 bits has a
    least value too, which takes 16 bits more and is more accurate.
    """

    bits: int
    group: int | None = UNIT
    least: bool = True

    def __post_init__(self):
        if self.bits not in BITS:
            raise ValueError(f"`bits` is 16 (bfloat16), 8 or 4. Received: {self.bits!r}.")
        if self.group is not None and (self.group < UNIT or self.group % UNIT):
            raise ValueError(f"`group` is a multiple of {UNIT}, or None for whole rows. Received: {self.group!r}.")

    @property
    def name(self):
        return "bfloat16" if self.bits == 16 else f"int{self.bits}"

    @property
    def kernel(self):
        return f"product_{self.name}"

    def numbers(self, inputs):
        """How many numbers a row of so many inputs has: with zeros up to whole groups."""
        unit = PAIR if self.bits == 4 else UNIT
        whole = unit if self.bits == 16 or self.group is None else max(self.group, unit)
        return -(-inputs // whole) * whole

    def tensors(self, outputs, inputs):
        """Name -> (shape, dtype) of the tensors of a packed matrix."""
        numbers = self.numbers(inputs)
        if self.bits == 16:
            return {"packed": ((outputs, numbers), "bfloat16")}
        scales = (outputs, numbers // (self.group or numbers)), "float16"
        if self.bits == 8:
            return {"packed": ((outputs, numbers), "int8"), "scales": scales}
        found = {"packed": ((outputs, numbers // 2), "uint8"), "scales": scales}
        return {**found, "least": scales} if self.least else found


def pack(matrix, scheme):
    """A matrix (outputs, inputs), NumPy's, as a dict of NumPy arrays: those of `scheme.tensors`.

    Each number becomes the nearest that there is. Of 8 bits, and of 4 without least values, the largest of a group is
    kept; of 4 with them, the largest and the least.

    Raises:
        ValueError: a number is not finite, or larger than `LARGEST`.
    """
    outputs, inputs = matrix.shape
    rows = np.zeros((outputs, scheme.numbers(inputs)), "float32")
    rows[:, :inputs] = matrix
    largest = np.abs(rows).max(initial=0.0)
    if not largest <= LARGEST:
        raise ValueError(f"A packed matrix has numbers of up to {LARGEST}. Received: {largest}.")
    if scheme.bits == 16:
        return {"packed": rows.astype(ml_dtypes.bfloat16)}
    groups = rows.reshape(outputs, -1, scheme.group or rows.shape[1])
    scales, least = _scales(groups, scheme)
    numbers = _rounded(groups, scales, least, scheme).reshape(rows.shape)
    if scheme.bits == 8:
        return {"packed": numbers.astype("int8"), "scales": scales}
    halves = numbers.astype("uint8").reshape(outputs, -1, 2, UNIT // 2)
    found = {"packed": (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(outputs, -1), "scales": scales}
    return {**found, "least": least} if scheme.least else found


def _scales(groups, scheme):
    """Of groups (outputs, G, numbers) the scales and least values (outputs, G), float16."""
    if scheme.bits == 8:
        return (np.abs(groups).max(-1) / MOST[8]).astype("float16"), None
    if scheme.least:
        least = groups.min(-1).astype("float16")
        return ((groups.max(-1) - least) / MOST[4]).astype("float16"), least
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = (largest / -8).astype("float16")  # so that the largest is exactly -8 scales, of either sign
    return scales, -8 * scales


def _rounded(groups, scales, least, scheme):
    """The whole numbers that stand for those of groups."""
    scales = scales.astype("float32")[..., None]
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    if scheme.bits == 8:
        return np.clip(np.rint(groups * inverse), -MOST[8], MOST[8])
    return np.clip(np.rint((groups - least.astype("float32")[..., None]) * inverse), 0, MOST[4])


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

    A few rows go to a native kernel where there is one, which reads the matrix as it is packed; for more, and for
    gradients in x, which pass the rounding of x as if it were not there, the matrix is unpacked.
    """
    inputs, leading = x.shape[-1], ops.shape(x)[:-1]
    rows = ops.reshape(x, (-1, inputs))
    y = None
    where = device_of(rows)
    is_native = _is_few(rows) and chosen(kernel, x.dtype, tuple(rows.shape), where) == "native"
    if is_native and device(where) == "cpu":
        y = packed_product(scheme.kernel, rows, tensors_of(tensors, scheme), Slope(scheme, inputs))
    if y is None:
        y = wide(rows if scheme.bits == 16 else rounded(rows), unpack(tensors, scheme, inputs))
    return ops.reshape(y, (*leading, y.shape[-1]))


def _is_few(rows):
    return isinstance(rows.shape[0], int) and 0 < rows.shape[0] <= FEW


def tensors_of(tensors, scheme):
    """The tensors of a matrix in the order in which a kernel takes them; one that there is not is empty."""
    return [
        *(ops.convert_to_tensor(tensors[name]) for name in NAMES[scheme.bits] if name in tensors),
        *(ops.zeros((0,), "float16") for name in NAMES[scheme.bits] if name not in tensors),
    ]


@dataclass(frozen=True)
class Slope:
    """From the slope of a product to that of its rows."""

    scheme: Scheme
    inputs: int

    def __call__(self, dy, tensors):
        named = dict(zip(NAMES[self.scheme.bits], tensors, strict=True))
        return ops.matmul(dy, unpack(named, self.scheme, self.inputs))


def rounded(rows):
    """rows (R, inputs), of each 32 numbers the nearest of 255, float32. Its gradient is that of `rows` themselves."""
    rows = ops.cast(rows, "float32")
    inputs = rows.shape[1]
    units = ops.reshape(ops.pad(rows, ((0, 0), (0, -inputs % UNIT))), (-1, -(-inputs // UNIT), UNIT))
    most = ops.max(ops.abs(units), axis=-1, keepdims=True)
    whole = ops.round(units * (MOST[8] / ops.where(most == 0, 1.0, most)))
    nearest = ops.reshape(whole * (most / MOST[8]), (-1, -(-inputs // UNIT) * UNIT))[:, :inputs]
    return rows + ops.stop_gradient(nearest - rows)


def wide(rows, matrix):
    """rows (R, inputs) times a matrix (outputs, inputs), transposed, float32."""
    return ops.matmul(ops.cast(rows, "float32"), ops.transpose(ops.cast(matrix, "float32")))
