"""A model begins with a state file as the program does that wrote it, and with its own as if it never stopped."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import open_weights, write_pth
from tests.models.small import arrays, lawful, small_model, texts

pytestmark = pytest.mark.once


@pytest.fixture(params=["5.2", "6", "7"])
def answered(request, oracles):
    """A reference model, and the answers that were recorded with a tuned state: (version, RWKV, answers)."""
    version = request.param
    rwkv = build_transformer_model(checkpoint_path=oracles / f"reference/reference_{version}.pth")
    return version, rwkv, np.load(oracles / f"state/state_{version}.npz")


def logits_from(rwkv, answers, state):
    return ops.convert_to_numpy(rwkv.forward(answers["tokens"][None].astype("int32"), state)[0])[0]


@pytest.mark.oracle
def test_a_tuned_state_of_rwkv_lm(answered, oracles):
    """1e-4 of the largest answer: float32 sums in another order. Without the state the logits are those recorded
    without, which are far away.
    """
    version, rwkv, answers = answered
    tuned = logits_from(rwkv, answers, rwkv.load_state(oracles / f"state/state_{version}.pth"))
    assert np.abs(tuned - answers["logits"]).max() < 1e-4 * np.abs(answers["logits"]).max()
    untuned = logits_from(rwkv, answers, None)
    assert np.abs(untuned - answers["base_logits"]).max() < 1e-4 * np.abs(answers["base_logits"]).max()
    assert np.abs(answers["logits"] - answers["base_logits"]).max() > 1


@pytest.mark.oracle
def test_the_same_state_merged_into_the_model(answered, oracles, tmp_path, caplog):
    """A model file with the state among its weights loads as the model, which is said, and its state as the state."""
    version, _, answers = answered
    model, state = oracles / f"reference/reference_{version}.pth", oracles / f"state/state_{version}.pth"
    with open_weights(model) as weights, open_weights(state) as tuned:
        write_pth(tmp_path / "merged.pth", dict(weights) | dict(tuned))
    rwkv = build_transformer_model(checkpoint_path=tmp_path / "merged.pth")
    assert "holds a tuned initial state" in caplog.text
    logits = logits_from(rwkv, answers, rwkv.load_state(tmp_path / "merged.pth"))
    assert np.abs(logits - answers["logits"]).max() < 1e-4 * np.abs(answers["logits"]).max()


@pytest.mark.oracle
def test_a_state_of_web_rwkv(oracles):
    """0.01, the bar of float16, in which the file is."""
    rwkv = build_transformer_model(checkpoint_path=oracles / "reference/reference_6.pth")
    answers = np.load(oracles / "state/state_6.npz")
    logits = logits_from(rwkv, answers, rwkv.load_state(oracles / "formats/st/state_6.st"))
    assert np.abs(logits - answers["logits"]).max() < 0.01


@pytest.mark.oracle
def test_a_state_of_another_model_is_refused(oracles):
    with pytest.raises(ValueError, match="it has 2 heads of 64, the model 2 heads of 8"):
        small_model().load_state(oracles / "state/state_6.pth")


@pytest.mark.parametrize("version", lawful("7"))
def test_a_text_goes_on_from_a_file(version, rng, tmp_path):
    """Nothing is lost in a file of our own: the same logits, bit for bit, as from the state in memory."""
    rwkv, ids = small_model(version), texts(rng, 3, 12)
    _, state = rwkv.forward(ids[:, :7])
    rwkv.save_state(state, tmp_path / "halfway.state")
    read = rwkv.load_state(tmp_path / "halfway.state")
    assert read.model == rwkv.config.model
    for got, want in zip(
        arrays(*rwkv.forward(ids[:, 7:], read)), arrays(*rwkv.forward(ids[:, 7:], state)), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_half_precision_comes_through(rng, tmp_path):
    """The shift vectors are in the compute dtype, in the file too."""
    rwkv, ids = small_model(dtype="bfloat16"), texts(rng, 1, 5)
    _, state = rwkv.forward(ids)
    rwkv.save_state(state, tmp_path / "a.state")
    read = rwkv.load_state(tmp_path / "a.state")
    assert str(read.shift.dtype) == "bfloat16" and str(read.wkv.dtype) == "float32"
    for got, want in zip(arrays(*rwkv.forward(ids, read)), arrays(*rwkv.forward(ids, state)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_only_a_state_of_this_model_is_saved(tmp_path):
    rwkv = small_model()
    with pytest.raises(ValueError, match=r"This rwkv6 wants wkv \(2, 2, 8, 8\)"):
        rwkv.save_state(RWKVState(np.zeros((1, 2, 2, 4, 4)), np.zeros((1, 4, 1, 8))), tmp_path / "a.state")
    assert not list(tmp_path.iterdir())
