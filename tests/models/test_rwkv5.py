"""What is special to RWKV-5: its variants, the two kinds of bonus, and its group norm's epsilon."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import write_pth
from tests.models import numpy_rwkv5
from tests.models.small import arrays, assert_close, small_model, texts
from tests.official import official_weights

VARIANTS = ("5.0", "5.0 time_first", "5.1", "5.2")


@pytest.mark.parametrize("version", VARIANTS)
def test_a_file_comes_back_bit_for_bit(version, tmp_path, rng):
    """Variant and bonus are read from names and shapes; what is written is what was read, in the same order."""
    path, weights = tmp_path / "model.pth", official_weights(version, rng)
    write_pth(path, weights)
    rwkv = build_transformer_model(checkpoint_path=path)
    assert (rwkv.config.variant, rwkv.config.exponential_bonus) == (version[:3], version.endswith("time_first"))
    again = rwkv.weights()
    assert list(again) == list(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.on("torch")
@pytest.mark.once
@pytest.mark.parametrize("version", VARIANTS)
def test_odd_sizes(version, rng):
    """One head of 3 channels, a group norm of its own epsilon; 1e-4 of float64."""
    rwkv = small_model(
        version, hidden_size=3, num_attention_heads=1, attention_head_size=3, group_norm_epsilon=1e-5, seed=1
    )
    ids = texts(rng, 1, 20)
    logits, _ = numpy_rwkv5.forward(rwkv.weights(), ids[0], epsilon=1e-5)
    assert_close([ops.convert_to_numpy(rwkv.forward(ids)[0])], [logits[None]])


def test_initial_bonus_and_decay():
    """As the authors start: e^-3 for every head of the oldest, a zigzag for the channels of the newest."""
    sizes = {"model": "rwkv5", "vocab_size": 8, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    old = build_transformer_model(**sizes, variant="5.0", exponential_bonus=True).weights()
    new = build_transformer_model(**sizes, variant="5.2").weights()
    assert old["blocks.1.att.time_first"].tolist() == [-3, -3, -3]
    assert old["blocks.1.att.time_decay"].tolist() == pytest.approx([-6, -4.75, -1])
    assert new["blocks.0.att.time_faaaa"].ravel()[:3].tolist() == pytest.approx([0, 0.1, -0.1])
    assert new["blocks.1.att.time_decay"].ravel()[[0, -1]].tolist() == [-6, -1]


@pytest.mark.live
@pytest.mark.parametrize("version", VARIANTS)
def test_rwkv_package(version, tmp_path, rng, monkeypatch):
    """A file that we wrote, read by the `rwkv` package: the same logits and state."""
    pytest.importorskip("torch")
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    rwkv = small_model(version, hidden_size=128, num_attention_heads=2, attention_head_size=64)
    path = tmp_path / "small.pth"
    write_pth(path, rwkv.weights())
    from rwkv.model import RWKV

    theirs = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    ids = texts(rng, 1, 30)
    logits, state = theirs.forward(ids[0].tolist(), None, full_output=True)
    wkv = np.stack([state[3 * i + 1].numpy() for i in range(2)])
    shift = np.stack([state[3 * i + j].numpy() for i in range(2) for j in (0, 2)])
    want = arrays(logits.numpy()[None], RWKVState(wkv[None], shift[None, :, None]))
    assert_close(arrays(*rwkv.forward(ids)), want)
