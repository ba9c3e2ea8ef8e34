"""What is special to RWKV-4: no heads, and a state of sums under a running maximum."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import write_pth
from tests.gradients import gradients
from tests.models import numpy_rwkv4
from tests.models.small import arrays, assert_close, small_model, texts
from tests.official import official_weights


@pytest.fixture(scope="module")
def rwkv():
    return small_model("4")


def test_a_file_comes_back_bit_for_bit(tmp_path, rng):
    """What is written is what was read, in the same order."""
    path, weights = tmp_path / "model.pth", official_weights("4", rng)
    write_pth(path, weights)
    again = build_transformer_model(checkpoint_path=path).weights()
    assert list(again) == list(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.once
def test_one_channel(rng):
    """Hidden size 1: every norm gives its bias. 1e-4 of float64."""
    rwkv = small_model("4", hidden_size=1, intermediate_size=1, num_hidden_layers=1)
    ids = texts(rng, 1, 20)
    logits, _ = numpy_rwkv4.forward(rwkv.weights(), ids[0])
    assert_close([ops.convert_to_numpy(rwkv.forward(ids)[0])], [logits[None]])


def test_zeros_are_where_a_text_begins(rwkv, rng):
    """No state, an empty one and one of zeros are the same; a row without a token hands back what came, bit for bit."""
    ids = texts(rng, 2, 9)
    empty = RWKVState.zeros(rwkv.config, 2)
    assert empty.wkv[:, :, 2].max() == np.float32(-1e30)
    zeros = RWKVState(np.zeros_like(empty.wkv), empty.shift)
    want = arrays(*rwkv.forward(ids))
    for state in (empty, zeros):
        assert_close(arrays(*rwkv.forward(ids, state)), want, bar=0)
        _, after = rwkv.forward(ids, state, np.zeros((2, 9), bool))
        np.testing.assert_array_equal(ops.convert_to_numpy(after.wkv), state.wkv)


@pytest.mark.once
def test_large_keys_stay_finite(rwkv, rng):
    """Weights a thousand times as large: exponents of thousands, no overflow."""
    loud = small_model("4")
    for block in loud.backbone.blocks:
        block.time_mix.key.kernel.assign(1000 * block.time_mix.key.kernel)
    ids = texts(rng, 2, 30)
    logits, state = loud.forward(ids)
    want, _ = numpy_rwkv4.forward(loud.weights(), ids[0])
    assert np.isfinite(ops.convert_to_numpy(state.wkv)).all()
    # 1e-2: float32 keeps an exponent of some thousands to about 1e-4, each layer's error enters the next one's.
    assert_close([ops.convert_to_numpy(logits)[:1]], [want[None]], bar=1e-2)


def test_a_start_of_zeros_is_trainable(rwkv, rng):
    """Numerator and denominator of 0 under a maximum of 0, as tuning begins: every layer has their gradient."""
    ids = ops.convert_to_tensor(texts(rng, 1, 12))
    backbone, zero = rwkv.backbone, RWKVState.zeros(rwkv.config)

    def loss(sums):
        wkv = ops.concatenate([sums, ops.zeros_like(sums[:, :, :1])], axis=2)
        hidden, _ = backbone.read(ids, backbone.unpack(wkv, zero.shift))
        return ops.mean(ops.square(backbone.logits(hidden)))

    (got,) = gradients(loss, [zero.wkv[:, :, :2]])
    assert np.isfinite(got).all()
    # A channel's denominator has none where its values cancel, and relu may hide a few channels: most must have one.
    assert (np.abs(got) > 1e-8).mean(axis=(0, 3)).min() > 0.9


@pytest.mark.live
def test_rwkv_package(rwkv, tmp_path, rng, monkeypatch):
    """A file that we wrote, read by the `rwkv` package: the same logits and state."""
    pytest.importorskip("torch")
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    path = tmp_path / "small.pth"
    write_pth(path, rwkv.weights())
    from rwkv.model import RWKV

    theirs = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    ids = texts(rng, 1, 30)
    logits, state = theirs.forward(ids[0].tolist(), None, full_output=True)
    layers = [[x.numpy() for x in state[5 * i : 5 * i + 5]] for i in range(2)]
    wkv = np.stack([np.stack(layer[1:4]) for layer in layers])
    shift = np.stack([x for layer in layers for x in (layer[0], layer[4])])
    want = arrays(logits.numpy()[None], RWKVState(wkv[None], shift[None, :, None]))
    assert_close(arrays(*rwkv.forward(ids)), want)
