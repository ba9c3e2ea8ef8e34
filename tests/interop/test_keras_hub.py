"""Keras Hub's RWKV-7 saves its weights, and we compute its logits from them. It runs where `keras-hub` is installed."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model

pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore"),  # of keras-hub, about kernels that are not installed
]


def test_backbone(tmp_path, rng):
    """1e-4 of the largest logit: float32 sums in another order."""
    keras_hub = pytest.importorskip("keras_hub")
    theirs = keras_hub.models.RWKV7Backbone(
        vocabulary_size=32,
        hidden_size=16,
        num_layers=3,
        head_size=8,
        intermediate_dim=24,
        gate_lora=2,
        mv_lora=4,
        aaa_lora=5,
        decay_lora=3,
    )
    for variable in theirs.variables:
        variable.assign(rng.normal(1 if variable.name == "gamma" else 0, 0.4, variable.shape))
    theirs.save_weights(tmp_path / "a.weights.h5")
    ids = rng.integers(0, 32, (2, 19)).astype("int32")
    expected = ops.convert_to_numpy(theirs({"token_ids": ids, "padding_mask": np.ones_like(ids)}))
    ours = build_transformer_model(checkpoint_path=tmp_path / "a.weights.h5", pad_token_id=None)
    logits = ops.convert_to_numpy(ours.forward(ids)[0])
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
