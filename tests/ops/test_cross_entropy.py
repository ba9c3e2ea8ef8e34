"""The chunked cross-entropy is the cross-entropy, and so are its gradients."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops.cross_entropy import chunked_cross_entropy, chunked_divergence
from tests.gradients import compile_on, gradients

B, T, D, V = 2, 11, 5, 13


def inputs(rng):
    """hidden, kernel, labels, weights: some zero, one row's whole."""
    weights = (rng.random((B, T)) < 0.7) * rng.random((B, T))
    weights[1, 4:] = 0
    arrays = [3 * rng.standard_normal((B, T, D)), rng.standard_normal((D, V)), weights]
    hidden, kernel, weights = (x.astype("float32") for x in arrays)
    return hidden, kernel, rng.integers(0, V, (B, T)).astype("int32"), weights


def truth(hidden, kernel, labels, weights):
    """The sum and its gradients in float64."""
    hidden, kernel, weights = (np.asarray(x, "float64") for x in (hidden, kernel, weights))
    logits = hidden @ kernel
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    one = np.eye(V)[labels]
    slope = weights[..., None] * (p - one)
    loss = -(weights * np.log((p * one).sum(-1))).sum()
    return loss, slope @ kernel.T, np.einsum("btd,btv->dv", hidden, slope)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("chunk_len", [1, 4, 11, 64])
def test_value_and_gradients(chunk_len, jit, rng):
    """1e-6 of float64: sums of a few float32 numbers. The incoming gradient counts too."""
    hidden, kernel, labels, weights = inputs(rng)
    want = truth(hidden, kernel, labels, weights)

    def loss(hidden, kernel):
        return 3.0 * chunked_cross_entropy(hidden, kernel, labels, weights, chunk_len)

    np.testing.assert_allclose(ops.convert_to_numpy(compile_on(loss, jit)(hidden, kernel)), 3 * want[0], rtol=1e-6)
    for got, slope in zip(gradients(loss, (hidden, kernel), jit), want[1:], strict=True):
        np.testing.assert_allclose(got, 3 * slope, atol=3e-6 * np.abs(slope).max())


def test_a_kernel_that_does_not_train(rng):
    """The gradient of hidden is the same, that of kernel is zero."""
    hidden, kernel, labels, weights = inputs(rng)

    def loss(hidden, kernel):
        return chunked_cross_entropy(hidden, kernel, labels, weights, 4, kernel_trains=False)

    dh, dkernel = gradients(loss, (hidden, kernel))
    want = truth(hidden, kernel, labels, weights)[1]
    np.testing.assert_allclose(dh, want, atol=1e-6 * np.abs(want).max())
    assert not dkernel.any()


def test_no_token_counts(rng):
    """Weights of zero: loss and gradients are zero, also where logits are infinite."""
    hidden, kernel, labels, weights = inputs(rng)
    hidden[0, 0], kernel[:, 1] = 1e30, 1e20

    def loss(hidden):
        return chunked_cross_entropy(hidden, kernel, labels, np.zeros_like(weights), 4)

    assert float(ops.convert_to_numpy(loss(hidden))) == 0
    assert not gradients(loss, (hidden,))[0].any()


def apart(hidden, wanted, kernel, weights):
    """The divergence and its gradient in hidden, in float64, term by term."""
    p, q = (np.exp(np.asarray(x, "float64") @ kernel.astype("float64")) for x in (wanted, hidden))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    slope = weights[..., None].astype("float64") * (q - p)
    return (weights * (p * np.log(p / q)).sum(-1)).sum(), slope @ kernel.T.astype("float64")


@pytest.mark.parametrize("chunk_len", [4, 64])
def test_divergence_and_its_gradient(chunk_len, rng):
    """1e-6 of float64, as above. The teacher gets no gradient."""
    hidden, kernel, _, weights = inputs(rng)
    wanted = rng.standard_normal((B, T, D)).astype("float32")
    want, slope = apart(hidden, wanted, kernel, weights)

    def loss(hidden):
        return 3.0 * chunked_divergence(hidden, wanted, kernel, weights, chunk_len)

    np.testing.assert_allclose(ops.convert_to_numpy(compile_on(loss)(hidden)), 3 * want, rtol=3e-6)
    np.testing.assert_allclose(gradients(loss, (hidden,), True)[0], 3 * slope, atol=3e-6 * np.abs(slope).max())


def test_no_divergence_from_itself(rng):
    """Zero, of value and gradient, also where logits are far apart; and where the weight is 0, of infinite ones too."""
    hidden, kernel, _, weights = inputs(rng)
    hidden, wanted = 100 * hidden, 100 * hidden
    wanted[weights == 0] = 1e38

    def loss(hidden):
        return chunked_divergence(hidden, wanted, kernel, weights, 4)

    assert float(ops.convert_to_numpy(loss(hidden))) == pytest.approx(0, abs=1e-5)
    assert np.abs(gradients(loss, (hidden,))[0]).max() < 1e-5
