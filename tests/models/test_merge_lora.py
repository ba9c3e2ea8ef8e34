"""A model with an adapter merged answers as RWKV-PEFT's; a merge that cannot be changes nothing."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.weights import write_pth
from bert4keras_rwkv.weights.adapters import save_lora
from tests.models.small import arrays, assert_close, lawful, small_model, texts

pytestmark = pytest.mark.once

MERGES = {
    "LoRA": ("lora/lora_7_r8_alpha32.pth", None, "lora_logits", 1e-4),
    "LoRA of web-rwkv": ("formats/st/lora_7.st", None, "lora_logits", 0.02),
    "PiSSA": ("lora/pissa_7_r8.pth", "lora/pissa_7_r8_init.pth", "pissa_logits", 0.08),
}


@pytest.mark.on("torch")
@pytest.mark.oracle
@pytest.mark.parametrize("name", MERGES)
def test_recorded_answers(oracles, name):
    """1e-4 for float32. 0.02, twice the bar of float16, for two factors in float16 whose product counts four times: the
    answers are of those in float32. 0.08, the bar of bfloat16, for PiSSA, whose answers are of weights that RWKV-PEFT
    rounded to it.
    """
    path, base, logits, bar = MERGES[name]
    answers = np.load(oracles / "lora/lora_7_answers.npz")
    ids = answers["tokens"][None].astype("int32")
    rwkv = build_transformer_model(checkpoint_path=oracles / "reference/reference_7.pth")
    before = ops.convert_to_numpy(rwkv.forward(ids)[0])[0]
    assert np.abs(before - answers["base_logits"]).max() < 1e-4 * np.abs(before).max()
    rwkv.merge_lora(oracles / path, base=None if base is None else oracles / base)
    after = ops.convert_to_numpy(rwkv.forward(ids)[0])[0]
    assert np.abs(after - answers[logits]).max() < bar * (np.abs(answers[logits]).max() if bar < 0.01 else 1)
    assert np.abs(after - before).max() > 0.3


@pytest.mark.on("jax", "torch")
@pytest.mark.parametrize("version", lawful("7"))
def test_merging_is_building_with_merged_weights(version, rng, tmp_path):
    """1e-5: the weights are the same but for the order of one float32 product. What `forward` compiled before sees the
    new weights.
    """
    rwkv, ids = small_model(version), texts(rng, 1, 9)
    rwkv.forward(ids)
    weights = {name: np.asarray(array) for name, array in rwkv.weights().items()}
    D = weights["head.weight"].shape[1]
    pairs = {
        name: (rng.standard_normal((2, D)).astype("float32"), rng.standard_normal((rows, 2)).astype("float32"))
        for name, rows in (("blocks.1.att.receptance", D), ("blocks.0.ffn.key", 24), ("head", 40))
    }
    save_lora(tmp_path / "lora.pth", pairs)
    rwkv.merge_lora(tmp_path / "lora.pth", alpha=1)
    for name, (A, B) in pairs.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + 0.5 * B @ A
    write_pth(tmp_path / "merged.pth", weights)
    want = build_transformer_model(checkpoint_path=tmp_path / "merged.pth").forward(ids)
    assert_close(arrays(*rwkv.forward(ids)), arrays(*want), 1e-5)


def test_a_merge_that_cannot_be_changes_nothing(rng, tmp_path):
    rwkv = small_model()
    before = {name: np.array(array) for name, array in rwkv.weights().items()}
    good = (np.ones((2, 16), "float32"), np.ones((16, 2), "float32"))
    save_lora(tmp_path / "lora.pth", {"blocks.0.att.key": good, "blocks.7.att.key": good, "blocks.0.ffn.key": good})
    with pytest.raises(ValueError, match="2 weights do not fit"):
        rwkv.merge_lora(tmp_path / "lora.pth")
    for name, array in rwkv.weights().items():
        np.testing.assert_array_equal(array, before[name])
