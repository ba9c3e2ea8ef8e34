"""What is no number, backwards: where it comes out of RWKV-4's kernel, and of its loop."""

import numpy as np
from keras import ops

from bert4keras_rwkv.ops.gradients import gradients
from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import native
from bert4keras_rwkv.ops.wkv4 import wkv4_loop


def slopes(run, weights, tensors):
    """The gradients of a weighted sum of what `run` gives, as NumPy."""
    weights = [ops.convert_to_tensor(x) for x in weights]

    def total(*tensors):
        return sum(ops.sum(x * weight) for x, weight in zip(run(*tensors), weights, strict=True))

    found = gradients(total)(*map(ops.convert_to_tensor, tensors))
    return [ops.convert_to_numpy(ops.stop_gradient(x)) for x in found]


def same_ones_are_none(where, value, masked, rng):
    """With `value` in input number `where` the same gradients of kernel and loop are NaN, some for NaN in k or u."""
    xs, state, start = inputs(rng, "wkv4", (2, 5, 1, 8))
    given = [*xs, state, *([start] if masked else [])]
    given[where][tuple(size // 2 for size in given[where].shape)] = value
    masks = (rng.random((2, 5)) > 0.3, rng.random((2, 5)) > 0.6) if masked else (None, None)
    weights = [rng.standard_normal(x.shape).astype("float32") for x in (xs[0], state)]
    kernel = slopes(lambda *x: native("wkv4", x[:4], x[4], *masks, *x[5:]), weights, given)
    loop = slopes(lambda *x: wkv4_loop(*x[:5], *masks, *x[5:]), weights, given)
    for got, want in zip(kernel, loop, strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert any(np.isnan(x).any() for x in loop) or not (np.isnan(value) and where in (0, 3))
