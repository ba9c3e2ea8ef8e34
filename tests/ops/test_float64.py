"""In float64 every form of every recurrence is computed in float64, though some of Keras' operations are not."""

import contextlib

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops import wkv4, wkv6, wkv7
from tests.gradients import BACKEND
from tests.ops import numpy_wkv4, numpy_wkv6, numpy_wkv7, test_wkv4, test_wkv6, test_wkv7


@contextlib.contextmanager
def double_precision():
    """JAX computes in float64 only when told."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize(
    ("module", "truth", "inputs"),
    [
        (wkv4, numpy_wkv4.wkv4, test_wkv4.inputs),
        (wkv6, numpy_wkv6.wkv6, test_wkv6.inputs),
        (wkv7, numpy_wkv7.wkv7, test_wkv7.inputs),
    ],
    ids=["4", "6", "7"],
)
def test_float64(module, truth, inputs, T, rng):
    """1e-12 of NumPy's float64, in that dtype."""
    name = module.__name__.rpartition(".")[2]
    forms = [getattr(module, f"{name}_{form}", None) for form in (("loop", "step") if T == 1 else ("loop", "chunked"))]
    args = [np.asarray(x, "float64") for x in inputs(rng, T)]
    with double_precision():
        for form in filter(None, forms):
            for got, want in zip(form(*map(ops.convert_to_tensor, args)), truth(*args), strict=True):
                assert ops.dtype(got) == "float64"
                assert np.abs(ops.convert_to_numpy(got) - want).max() <= 1e-12 * np.abs(want).max()
