"""Models in the formats of other projects compute what those projects recorded."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model

# Where a recorded file is, and where its logits are: those of the reference model it was made from, or its own.
RECORDED = {
    "formats/hf/rwkv_4": "reference/reference_4.npz",
    "formats/hf/rwkv_5.2": "reference/reference_5.2.npz",
    "formats/hf/rwkv_6": "reference/reference_6.npz",
    "formats/fla/rwkv_6": "reference/reference_6.npz",
    "formats/fla/rwkv_7": "reference/reference_7.npz",
    "formats/st/6.st": "formats/st/6_logits.npy",
    "formats/st/7.st": "formats/st/7_logits.npy",
}


@pytest.mark.on("torch")
@pytest.mark.once
@pytest.mark.oracle
@pytest.mark.parametrize("where", RECORDED)
def test_recorded_logits(oracles, where):
    """Computed in float32: 1e-4 of the largest, for float32 sums come in another order."""
    rwkv = build_transformer_model(checkpoint_path=oracles / where, dtype="float32")
    version = where.split("/")[-1].removesuffix(".st").removeprefix("rwkv_")
    tokens = np.load(oracles / f"reference/reference_{version}.npz", allow_pickle=True)["tokens"]
    want = np.load(oracles / RECORDED[where], allow_pickle=True)
    want = want["logits"] if RECORDED[where].endswith("npz") else want
    got = ops.convert_to_numpy(rwkv.forward(tokens[None].astype("int32"))[0])[0]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
