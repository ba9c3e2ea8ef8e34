"""A fingerprint tells models apart by all that decides what they remember, and is the same on every backend."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import fingerprint as module
from bert4keras_rwkv.models.fingerprint import fingerprint
from tests.models.small import small_model


@pytest.fixture(autouse=True)
def release(monkeypatch):
    monkeypatch.setattr(module, "__version__", "of this test")


@pytest.mark.parametrize(
    ("quantization", "recorded"),
    [
        (None, "7dd5ae9388c2505b92ee193f6c9ae024770461ee51074f563a812f53a65bface"),
        ("int4", "b24579fa6e4d595866b3c80a76464686a789158de18b76b1f4065728659b7893"),
        ("bfloat16", "6d1aeef330124224a983a16a83070f7afb4047a733804db8857ca59688c7375e"),
    ],
)
def test_every_backend_says_the_same(quantization, recorded):
    """Recorded on JAX."""
    rwkv = small_model("7", num_hidden_layers=1)
    if quantization is not None:
        rwkv.quantize(quantization)
    assert fingerprint(rwkv) == recorded


@pytest.mark.on("jax")
def test_every_variable_counts(monkeypatch):
    """The last number of each, in whichever piece it lies."""
    monkeypatch.setattr(module, "PIECE", 100)
    rwkv = small_model("6", num_hidden_layers=1)
    rwkv.quantize("int8")
    rwkv.enable_lora(2)
    rwkv.enable_state_tuning()
    seen = {fingerprint(rwkv)}
    for variable in rwkv.backbone.variables:
        value = ops.convert_to_numpy(variable).copy()
        value.flat[-1] = value.flat[-1] + 1
        variable.assign(value)
        seen.add(fingerprint(rwkv))
    assert len(seen) == len(rwkv.backbone.variables) + 1


@pytest.mark.on("jax")
def test_what_is_no_variable_counts(monkeypatch):
    """Scales of a LoRA, the dtype that is computed in, the release; and nothing else changes between two models."""

    def made(alpha=2, **options):
        rwkv = small_model("6", num_hidden_layers=1, **options)
        rwkv.enable_lora(2, alpha, targets="key")
        for variable in rwkv.backbone.variables:
            variable.assign(np.ones(variable.shape, "float32"))
        return fingerprint(rwkv)

    seen = {made(), made(alpha=3), made(dtype="mixed_bfloat16"), made(layer_norm_epsilon=1e-4)}
    assert made() in seen and len(seen) == 4
    monkeypatch.setattr(module, "__version__", "another")
    assert made() not in seen
