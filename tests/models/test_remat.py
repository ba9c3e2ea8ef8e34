"""`remat`: blocks computed again in the backward pass."""

import keras
import numpy as np
import pytest
from keras import ops

from tests.models.small import small_model, texts


def trained(rwkv, ids):
    """How far one step of training moves each weight."""
    before = [ops.convert_to_numpy(x).copy() for x in rwkv.backbone.variables]
    rwkv.model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rwkv.model.train_on_batch([ids[:, :-1]], ids[:, 1:])
    return [ops.convert_to_numpy(x) - y for x, y in zip(rwkv.backbone.variables, before, strict=True)]


@pytest.mark.on("jax", "torch")
@pytest.mark.parametrize("version", [pytest.param("6", marks=pytest.mark.slow), "7"])
def test_recomputed_blocks_train_alike(version, rng):
    """Every weight moves as without it; in 7 a value crosses blocks. 1e-4 of the move, or 1e-6: float32 sums."""
    ids = texts(rng, 2, 10)
    plain, again = (trained(small_model(version, remat=remat), ids) for remat in (False, True))
    for got, want in zip(again, plain, strict=True):
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(got, want, atol=max(1e-4 * np.abs(want).max(), 1e-6))
