"""From a matrix to a packed one."""

import ml_dtypes
import numpy as np

from bert4keras_rwkv.packing.compensation import compensated
from bert4keras_rwkv.packing.scales import AT_ONCE, SHARES, ends, fitted_scales, plain_scales, whole_numbers
from bert4keras_rwkv.packing.scheme import LARGEST, in_halves

SIGN = 1 << 15  # of a bfloat16
DTYPES = {"bfloat16": ml_dtypes.bfloat16, **{name: name for name in ("int8", "uint8", "float16")}}


def pack(matrix, scheme, weights=None):
    """A matrix (outputs, inputs), NumPy's, as a dict of NumPy arrays: those of `scheme.tensors`.

    Scales of 4 bits are those of least squares; of 8 bits, without weights, the largest number of a group is kept.
    weights: what is known of the inputs that the matrix will be multiplied by. Their mean squares (inputs,) weight the
    squares. Their second moments (inputs, inputs) let columns make up for the errors of those before them
    (`compensation`), which takes longer. Of 16 bits each number becomes the nearest, whatever the weights.

    Raises:
        ValueError: a number is not finite, or larger than `LARGEST`; or weights of another shape, or negative.
    """
    if np.ndim(weights) == 2:
        return _packed(matrix, scheme, weights)
    return pack_pieces(matrix.shape, [(0, matrix)], scheme, weights)


def pack_pieces(shape, pieces, scheme, weights=None, empty=np.empty):
    """`pack` of a matrix that comes piece by piece, (first row, rows). empty(shape, dtype): an array to be filled."""
    found = {name: empty(size, np.dtype(DTYPES[dtype])) for name, (size, dtype) in scheme.tensors(*shape).items()}
    step = max(1, AT_ONCE // scheme.numbers(shape[1]))
    for first, rows in pieces:
        if scheme.bits == 16 and str(rows.dtype) == "bfloat16":
            _copy_halves(rows, found["packed"][first : first + len(rows)])
            continue
        for start in range(0, len(rows), step):
            for name, part in _packed(rows[start : start + step], scheme, weights).items():
                found[name][first + start : first + start + len(part)] = part
    return found


def _copy_halves(rows, packed):
    """What `_packed` makes of rows that are bfloat16, (outputs, inputs): they are copied, and none is made float32."""
    inputs = rows.shape[1]
    packed[:, :inputs], packed[:, inputs:] = rows, 0
    bits = packed.view(np.uint16)
    # Behind the sign bits are ordered as the numbers are: the largest of the positive ones, and of the others.
    positive, negative = int(bits.view(np.int16).max(initial=0)), int(bits.max(initial=SIGN)) - SIGN
    _check_largest(np.uint16(max(positive, negative)).view(ml_dtypes.bfloat16).astype("float32"))


def _check_largest(largest):
    if not largest <= LARGEST:
        raise ValueError(f"A packed matrix has numbers of up to {LARGEST}. Received: {largest}.")


def _packed(matrix, scheme, weights):
    """`pack`, of all rows at once."""
    outputs, inputs = matrix.shape
    rows = np.zeros((outputs, scheme.numbers(inputs)), "float32")
    rows[:, :inputs] = matrix
    _check_largest(np.abs(rows).max(initial=0.0))
    if scheme.bits == 16:
        return {"packed": rows.astype(ml_dtypes.bfloat16)}
    groups = rows.reshape(outputs, -1, scheme.group or rows.shape[1])
    shares = SHARES if weights is not None else SHARES[:1]  # a matrix is packed as it is loaded: quickly
    if weights is None and scheme.bits == 4:
        weights = np.ones(inputs, "float32")
    numbers, scales, least = _chosen(groups, scheme, _filled(weights, inputs, rows.shape[1]), shares, inputs)
    numbers = numbers.reshape(rows.shape)
    if scheme.bits == 8:
        return {"packed": numbers.astype("int8"), "scales": scales}
    found = {"packed": in_halves((numbers - ends(scheme)[0]).astype("uint8")), "scales": scales}
    return {**found, "least": least} if scheme.least else found


def _chosen(groups, scheme, weights, shares, inputs):
    """The whole numbers (outputs, G, n), scales and least values (outputs, G) of groups."""
    if weights is not None and weights.ndim == 2:
        return compensated(groups, weights, scheme, inputs)
    if weights is None:
        scales, least = plain_scales(groups, scheme)
    else:
        scales, least = fitted_scales(groups, weights.reshape(groups.shape[1:]), scheme, shares)
    return whole_numbers(groups, scales, least, scheme), scales, least


def _filled(weights, inputs, numbers):
    """Weights for a row of so many numbers, of which those after the inputs are zeros that nothing is multiplied by."""
    if weights is None:
        return None
    weights = np.asarray(weights, "float32")
    if weights.shape not in ((inputs,), (inputs, inputs)) or not (np.isfinite(weights).all() and _positive(weights)):
        raise ValueError(
            f"`weights` are mean squares ({inputs},) of the inputs, or their second moments ({inputs}, {inputs}), "
            f"finite and not negative. Received: shape {weights.shape}, least number {weights.min(initial=0.0)}."
        )
    filled = np.pad(weights, (0, numbers - inputs))
    if weights.ndim == 2:
        rest = np.arange(inputs, numbers)
        filled[rest, rest] = np.mean(np.diagonal(weights))
    return filled


def _positive(weights):
    return (weights if weights.ndim == 1 else np.diagonal(weights)).min(initial=0.0) >= 0
