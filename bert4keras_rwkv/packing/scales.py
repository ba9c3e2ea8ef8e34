"""Scales of groups of numbers: those that keep the largest, and those of least squares.

A group (..., n) becomes whole numbers q between two ends, which stand for s q + m: s is its scale, m its least value, 0
where the scheme has none. Scales and least values are float16, as they are stored.
"""

import numpy as np

from bert4keras_rwkv.packing.scheme import MOST, UNIT

AT_ONCE = 1 << 16  # numbers, which with what is computed of them stay in a processor's cache
SHARES = (1.0, 0.85)  # of the range of a group, that the search begins with
ROUNDS = 4  # of rounding and fitting, from each of them


def ends(scheme):
    """The least and the largest whole number."""
    if scheme.bits == 8:
        return -MOST[8], MOST[8]
    return (0, MOST[4]) if scheme.least else (-8, 7)


def plain_scales(groups, scheme):
    """Of groups (outputs, G, n) the scales and least values (outputs, G) with which the largest numbers are kept.

    Of 8 bits, and of 4 without least values, that is the largest of a group; of 4 with them, the largest and the least.
    """
    if scheme.bits == 8:
        scales = (_largest(groups) / MOST[8]).astype("float16")
        return scales, np.zeros_like(scales)
    if scheme.least:
        least = groups.min(-1).astype("float16")
        return ((groups.max(-1) - least) / MOST[4]).astype("float16"), least
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = (largest / -8).astype("float16")  # so that the largest is exactly -8 scales, of either sign
    return scales, np.zeros_like(scales)


def _largest(groups):
    """The largest absolute number of each group (..., n).

    Of few numbers one after another NumPy finds it slowly. Here each number becomes the largest of itself and those
    after it, of 2, 4, ... `UNIT` together, in quick passes.
    """
    largest, width = np.abs(groups).reshape(-1), 1
    while width < UNIT:
        largest = np.maximum(largest[:-width], largest[width:])
        width *= 2
    largest = largest[::UNIT].reshape(*groups.shape[:-1], groups.shape[-1] // UNIT)
    return largest[..., 0] if groups.shape[-1] == UNIT else largest.max(-1)


def fitted_scales(groups, weights, scheme, shares=SHARES):
    """As `plain_scales`, those with the smallest squared error that is found, weighted by `weights` (G, n).

    Rounding and least squares take turns, from some shares of each group's range: 1 first, so none is worse than the
    plain one.
    """
    scales, least = (np.empty(groups.shape[:2], "float16") for _ in range(2))
    step = max(1, AT_ONCE // groups[0].size)
    for start in range(0, len(groups), step):
        rows = slice(start, start + step)
        scales[rows], least[rows] = _fitted(groups[rows], weights, scheme, shares)
    return scales, least


def whole_numbers(groups, scales, least, scheme):
    """The whole numbers, as float32, that are nearest to groups (..., n), of scales and least values (...)."""
    low, high = ends(scheme)
    scales, least = (part.astype("float32")[..., None] for part in (scales, least))
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    numbers = (groups - least) * inverse if scheme.least and scheme.bits == 4 else groups * inverse
    return np.clip(np.rint(numbers, out=numbers), low, high, out=numbers)


def _fitted(groups, weights, scheme, shares):
    first = plain_scales(groups, scheme)
    best, smallest = first, None
    totals = weights.sum(-1), np.einsum("ogn,gn->og", groups, weights)
    for share in shares:
        tried = _narrowed(*first, share, scheme)
        for _ in range(ROUNDS):
            error, after = _step(groups, weights, totals, *tried, scheme)
            better = True if smallest is None else error < smallest
            best = [np.where(better, new, old) for new, old in zip(tried, best, strict=True)]
            smallest = error if smallest is None else np.minimum(error, smallest)
            tried = after
    return best


def _narrowed(scales, least, share, scheme):
    """The scales and least values of a part of each group's range, in its middle."""
    scales = scales.astype("float32")
    if scheme.bits == 4 and scheme.least:
        least = least + scales * (MOST[4] * (1 - share) / 2)
    return (scales * share).astype("float16"), least.astype("float16")


def _step(groups, weights, totals, scales, least, scheme):
    """The squared error of scales and least values (outputs, G), and those of least squares for the same numbers."""
    numbers = whole_numbers(groups, scales, least, scheme)
    apart = groups - numbers * scales[..., None].astype("float32")
    apart -= least[..., None]
    error = np.einsum("ogn,gn->og", np.square(apart, out=apart), weights)
    weighted = np.multiply(numbers, weights, out=apart)
    squares = np.einsum("ogn,ogn->og", weighted, numbers)
    products = np.einsum("ogn,ogn->og", weighted, groups)
    if not (scheme.bits == 4 and scheme.least):
        slope = np.divide(products, squares, out=scales.astype("float32"), where=squares > 0)
        return error, (slope.astype("float16"), least)
    count, total = totals
    mean = np.divide(weighted.sum(-1), count, out=np.zeros_like(total), where=count > 0)
    spread = squares - mean**2 * count
    slope = np.divide(products - mean * total, spread, out=scales.astype("float32"), where=spread > 1e-6 * squares)
    base = np.divide(total, count, out=least.astype("float32") + slope * mean, where=count > 0) - slope * mean
    return error, (slope.astype("float16"), base.astype("float16"))
