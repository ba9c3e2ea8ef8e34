"""Rounding a matrix column by column, each column making up for the errors of those before it.

Where rounding changed a row by e, its product with inputs x is e.x off, with a mean square of e H e^T, H the second
moments of the inputs. After a column is rounded, those that follow are moved to where they are best given its error,
which the Cholesky factor of the inverse of H says (Frantar and others, GPTQ, arXiv 2210.17323).
"""

import numpy as np

from bert4keras_rwkv.packing.scales import fitted_scales, whole_numbers
from bert4keras_rwkv.packing.scheme import UNIT


def compensated(groups, moments, scheme, inputs):
    """Whole numbers (outputs, G, n), scales and least values (outputs, G) of groups. moments: (G * n, G * n).

    inputs: columns that there are; the rest are zeros that fill a row.

    The scales of a group are fitted when its turn comes, to where its columns have moved by then. A row whose product
    is nearer without all this is left out of it.
    """
    shape = groups.shape
    factor = _factor(moments)
    weights = np.where(np.arange(len(moments)) < inputs, np.diagonal(moments), 0)
    weights = weights.astype("float32").reshape(shape[1:])
    scales, least = fitted_scales(groups, weights, scheme)
    nearest = whole_numbers(groups, scales, least, scheme), scales, least
    found = _in_turns(groups, weights, factor, scheme, scales.copy(), least.copy())
    better = _error(groups, *found, moments) < _error(groups, *nearest, moments)
    return [
        np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(found, nearest, strict=True)
    ]


def _in_turns(groups, weights, factor, scheme, scales, least):
    columns = groups.reshape(len(groups), -1).T.copy()  # (inputs, outputs): a column lies together
    numbers = np.empty_like(columns)
    group = groups.shape[2]
    for start in range(0, len(columns), UNIT):
        part, at = columns[start : start + UNIT], start // group
        if start % group == 0 and start:
            whole = columns[start : start + group].T[:, None]
            fitted = fitted_scales(np.ascontiguousarray(whole), weights[at : at + 1], scheme)
            scales[:, at], least[:, at] = (one[:, 0] for one in fitted)
        errors = _one_by_one(part, numbers[start : start + UNIT], factor, start, scales[:, at], least[:, at], scheme)
        columns[start + UNIT :] -= factor[start : start + UNIT, start + UNIT :].T @ errors
    return np.ascontiguousarray(numbers.T).reshape(groups.shape), scales, least


def _one_by_one(part, numbers, factor, start, scales, least, scheme):
    """Round columns (UNIT, outputs), and move those of them that follow. Returns what moves the columns after them."""
    errors = np.empty_like(part)
    for i, column in enumerate(part):
        numbers[i] = whole_numbers(column[:, None], scales, least, scheme)[:, 0]
        row = factor[start + i, start + i : start + len(part)]
        errors[i] = (column - numbers[i] * scales.astype("float32") - least) / row[0]
        part[i + 1 :] -= row[1:, None] * errors[i]
    return errors


def _factor(moments):
    """The upper triangle U with U^T U the inverse of the second moments."""
    try:
        lower = np.linalg.cholesky(moments[::-1, ::-1].astype("float64"))
    except np.linalg.LinAlgError as error:
        raise ValueError("Second moments of inputs are positive definite. Add a little to their diagonal.") from error
    return np.linalg.inv(lower[::-1, ::-1]).astype("float32")


def _error(groups, numbers, scales, least, moments):
    """e H e^T of each row, (outputs,)."""
    values = numbers * scales[..., None].astype("float32") + least[..., None]
    apart = (groups - values).reshape(len(groups), -1)
    return np.einsum("oi,oi->o", apart @ moments.astype("float32"), apart)
