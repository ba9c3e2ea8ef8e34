"""A fingerprint tells models apart by all that decides what they remember, and is the same on every backend."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import fingerprint as module
from bert4keras_rwkv.models.fingerprint import fingerprint
from tests.models.small import small_model


@pytest.mark.parametrize(
    ("quantization", "recorded"),
    [
        (None, "ca4561eebb69727b03a1977ddcb86415d7c22dd5cd341fc9ecad976283774339"),
        ("int4", "bc4f73e55f41cfe4f7730dd6988164d1b683da39d8d13a21713e9b8034e68271"),
        ("bfloat16", "2b0a66e7a5220d38c25b89ed6243394a3b98a686a104d16a50431a79ccf2a823"),
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
    """Scales of a LoRA, the dtype that is computed in, the form of states; nothing else differs between two models."""

    def made(alpha=2, **options):
        rwkv = small_model("6", num_hidden_layers=1, **options)
        rwkv.enable_lora(2, alpha, targets="key")
        for variable in rwkv.backbone.variables:
            variable.assign(np.ones(variable.shape, "float32"))
        return fingerprint(rwkv)

    seen = {made(), made(alpha=3), made(dtype="mixed_bfloat16"), made(layer_norm_epsilon=1e-4)}
    assert made() in seen and len(seen) == 4
    monkeypatch.setattr(module, "FORM", "another")
    assert made() not in seen
