"""What packed matrices are, in memory and in files.

A packed matrix has a row for each output. A number is 16, 8 or 4 bits: bfloat16 as it is; int8 times the scale of its
group; 0 to 15 times the scale of its group, and its least value added (without one: 8 is zero). A group is some numbers
of a row one after another. Scales and least values are float16.

The layouts of 8 bits, and of 4, in groups of 32 are those of GGUF's Q8_0, Q4_0 and Q4_1, but for where scales lie.
"""

import math
from dataclasses import dataclass

import numpy as np

UNIT = 32  # numbers in the smallest group
PAIR = 2 * UNIT  # what the numbers of a row of 4 bits are a multiple of
LONGEST = 1 << 20  # of a group
LARGEST = 2.0**14  # of numbers that are packed: scales are float16
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
        if self.group is not None and (not UNIT <= self.group <= LONGEST or self.group % UNIT):
            raise ValueError(
                f"`group` is a multiple of {UNIT}, at most {LONGEST}, or None for whole rows. Received: {self.group!r}."
            )

    @property
    def name(self):
        return "bfloat16" if self.bits == 16 else f"int{self.bits}"

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

    def nbytes(self, outputs, inputs):
        """Bytes of a packed matrix."""
        return sum(
            np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in self.tensors(outputs, inputs).values()
        )


def in_halves(numbers):
    """Rows of numbers below 16 (outputs, numbers), uint8, two to a byte, as 4 bits are packed."""
    halves = numbers.reshape(len(numbers), -1, 2, UNIT // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(numbers), -1)


def unpacked(arrays, scheme, inputs):
    """The matrix (outputs, inputs) that packed arrays stand for: bfloat16 of 16 bits, else float32.

    Each number is rounded once, so that it is, bit for bit, what `ops.matmul.unpack` makes of it.
    """
    packed = arrays["packed"]
    if scheme.bits == 16:
        return packed[:, :inputs]
    scales = arrays["scales"].astype("float32")[..., None]
    if scheme.bits == 4:
        halves = packed.reshape(len(packed), -1, 1, UNIT // 2)
        packed = np.concatenate([halves % 16, halves // 16], axis=2)
    numbers = packed.reshape(*scales.shape[:2], -1).astype("float32") * scales
    if scheme.bits == 4:
        numbers += arrays["least"].astype("float32")[..., None] if scheme.least else -8 * scales
    return numbers.reshape(len(packed), -1)[:, :inputs]
