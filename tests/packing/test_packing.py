"""How the numbers of a packed matrix are chosen: by least squares, and with errors that are made up for."""

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.packing import Scheme, pack, unpacked
from bert4keras_rwkv.packing.scales import plain_scales, whole_numbers

pytestmark = pytest.mark.backend_free

SCHEMES = [Scheme(8), Scheme(8, group=None), Scheme(4), Scheme(4, group=64), Scheme(4, least=False)]
SHAPES = [(5, 33), (70, 96), (33, 200)]


def matrix(outputs, inputs):
    return np.random.default_rng(0).standard_t(4, (outputs, inputs)).astype("float32")


def second_moments(inputs):
    """Of inputs that differ in size and go together, as those of a network do."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, inputs // 4 + 1)) @ rng.standard_normal((inputs // 4 + 1, inputs))
    x = (x + rng.standard_normal((400, inputs))) * rng.gamma(1, 1, inputs)
    return (x.T @ x / len(x) + 0.01 * np.eye(inputs)).astype("float32")


def plainly(wanted, scheme):
    """The matrix that each group's largest numbers give the scale of."""
    rows = np.zeros((len(wanted), scheme.numbers(wanted.shape[1])), "float32")
    rows[:, : wanted.shape[1]] = wanted
    groups = rows.reshape(len(rows), -1, scheme.group or rows.shape[1])
    scales, least = plain_scales(groups, scheme)
    values = whole_numbers(groups, scales, least, scheme) * scales[..., None].astype("float32") + least[..., None]
    return values.reshape(rows.shape)[:, : wanted.shape[1]]


def errors(found, wanted, moments):
    """The mean squares of the errors of products with inputs of these moments, for each output."""
    apart = np.float64(found - wanted)
    return np.einsum("oi,ij,oj->o", apart, moments, apart)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_least_squares_are_no_worse_than_plain_rounding(scheme, shape):
    """Of any row, however the squares are weighted; and in all clearly better. 1e-5: sums in float32."""
    wanted, inputs = matrix(*shape), shape[1]
    for weights in (np.ones(inputs), np.diagonal(second_moments(inputs))):
        moments = np.diag(weights)
        fitted = errors(unpacked(pack(wanted, scheme, weights), scheme, inputs), wanted, moments)
        plain = errors(plainly(wanted, scheme), wanted, moments)
        assert (fitted <= plain * (1 + 1e-5)).all()
        assert fitted.sum() < (0.995 if scheme.bits == 8 else 0.95) * plain.sum()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compensation_is_no_worse_than_least_squares(scheme, shape):
    """In the products of any row; and in all a third better, of inputs that go together."""
    wanted, inputs = matrix(*shape), shape[1]
    moments = second_moments(inputs)
    nearest, moved = (
        errors(unpacked(pack(wanted, scheme, weights), scheme, inputs), wanted, moments)
        for weights in (np.diagonal(moments), moments)
    )
    assert (moved <= nearest * (1 + 1e-4)).all()
    assert moved.sum() < 2 / 3 * nearest.sum()


def test_inputs_without_correlation_need_no_compensation():
    wanted, weights = matrix(20, 96), np.random.default_rng(2).gamma(1, 1, 96)
    for scheme in SCHEMES:
        one, other = (pack(wanted, scheme, given) for given in (weights, np.diag(weights)))
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("number", [0.0, 1e-9, 3.0, -3.0])
def test_equal_numbers(number):
    """Groups without a range, and numbers that no scale reaches."""
    wanted = np.full((3, 64), number, "float32")
    for scheme in SCHEMES:
        for weights in (None, np.ones(64), np.zeros(64), np.eye(64)):
            found = unpacked(pack(wanted, scheme, weights), scheme, 64)
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.ones(63), r"\(64,\) of the inputs.*Received: shape \(63,\)"),
        (-np.ones(64), "not negative"),
        (np.full(64, np.nan), "finite"),
        (np.zeros((64, 64)), "positive definite"),
    ],
)
def test_weights_that_cannot_be(weights, said):
    with pytest.raises(ValueError, match=said):
        pack(matrix(3, 64), Scheme(4), weights)


def test_bfloat16_is_copied():
    """Rows that are bfloat16 stay so: what float32 of the same numbers gives, and the same refusals."""
    matrix = np.random.default_rng(0).standard_normal((37, 70)).astype(ml_dtypes.bfloat16)
    for one in (matrix, -np.abs(matrix), np.zeros_like(matrix)):
        copied, rounded = (pack(given, Scheme(16))["packed"] for given in (one, one.astype("float32")))
        np.testing.assert_array_equal(copied.view("uint16"), rounded.view("uint16"))
    for bad in (np.nan, -np.inf, 3e4, -3e4):
        matrix[5, 6] = bad
        with pytest.raises(ValueError, match="up to 16384"):
            pack(matrix, Scheme(16))
