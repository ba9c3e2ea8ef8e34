"""RWKV-5's recurrence is RWKV-6's with a decay and a bonus that are the same for every token."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops.wkv5 import wkv5
from tests.gradients import gradients, quick
from tests.ops import numpy_wkv6

B, T, H, N = 2, 21, 2, 4


def inputs(generator, of_channels):
    """r, w, k, v, u, state as float32; w and u (H, N) or (H,)."""
    r, k, v = generator.standard_normal((3, B, T, H, N))
    size = (H, N) if of_channels else (H,)
    w, u = -np.exp(generator.normal(-1, 1.5, size)), generator.standard_normal(size)
    return [x.astype("float32") for x in (r, w, k, v, u, generator.standard_normal((B, H, N, N)))]


def spread(r, w, k, v, u, state):
    """The same as RWKV-6 takes it."""
    w, u = (np.broadcast_to(x.reshape(H, -1), (H, N)) for x in (w, u))
    return r, np.broadcast_to(w, r.shape), k, v, u, state


@pytest.mark.parametrize("of_channels", [False, True])
def test_values_and_gradients(of_channels, rng):
    """1e-5 of float64, with masks; the gradient of a decay is the sum over all its tokens and channels."""
    args = inputs(rng, of_channels)
    present = rng.random((B, T)) < 0.7
    dy = (rng.standard_normal((B, T, H, N)) * present[..., None, None]).astype("float32")
    dstate = rng.standard_normal((B, H, N, N)).astype("float32")

    def loss(*args):
        y, state = wkv5(*args, present)
        return ops.sum(ops.multiply(y, dy)) + ops.sum(ops.multiply(state, dstate))

    y, state = quick(wkv5)(*args, present)
    want_y, want_state = numpy_wkv6.wkv6(*spread(*args), present)
    np.testing.assert_allclose(ops.convert_to_numpy(y)[present], want_y[present], atol=1e-5 * np.abs(want_y).max())
    np.testing.assert_allclose(ops.convert_to_numpy(state), want_state, atol=1e-5 * np.abs(want_state).max())
    dr, dw, dk, dv, du, dS, _ = numpy_wkv6.wkv6_gradients(dy, dstate, *spread(*args), present)
    dw = dw.sum((0, 1))
    dw, du = (dw, du) if of_channels else (dw.sum(-1), du.sum(-1))
    for got, exact in zip(gradients(loss, args, jit=True), (dr, dw, dk, dv, du, dS), strict=True):
        assert got.shape == exact.shape
        assert np.abs(got - exact).max() < 1e-5 * np.abs(exact).max()
