"""Quantisation that takes account of what the matrices multiply in a text."""

import numpy as np
import pytest

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.models.calibration import LANES, LENGTH, SHARE, lanes, moments_of_inputs
from bert4keras_rwkv.models.quantization import projections
from tests.models.small import small_model

IDS = np.random.default_rng(0).integers(1, 40, 63)


@pytest.mark.parametrize("version", ["6", pytest.param("7", marks=pytest.mark.on("torch"))])
def test_what_projections_multiply(version):
    """The head what the model gives it; of the others the squares are those that the second moments have."""
    rwkv = small_model(version)
    layers = projections(rwkv.backbone)
    squares, moments = (dict(moments_of_inputs(rwkv.backbone, layers, IDS, whole)) for whole in (False, True))
    assert set(squares) == set(moments) == set(layers)
    for path, layer in layers.items():
        assert squares[path].shape == (layer.kernel.shape[0],)
        np.testing.assert_allclose(np.diagonal(moments[path]), squares[path], rtol=1e-4)
        assert np.linalg.eigvalsh(np.float64(moments[path])).min() > 0
    hidden, _ = rwkv.backbone.read(ops.convert_to_tensor(IDS[None].astype("int32")), rwkv.backbone.start(1))
    given = np.square(ops.convert_to_numpy(ops.stop_gradient(rwkv.backbone.ln_out(hidden)))[0])
    np.testing.assert_allclose(squares["head"], given.mean(0) + SHARE * given.mean(), rtol=1e-4)
    assert not any("call" in vars(layer) for layer in layers.values())


@pytest.mark.backend_free
@pytest.mark.parametrize(("tokens", "shape"), [(7, (1, 7)), (LENGTH, (1, LENGTH)), (9 * LENGTH + 5, (LANES, LENGTH))])
def test_lanes(tokens, shape):
    found = lanes(np.arange(tokens))
    assert found.shape == shape and (found[0] == np.arange(shape[1])).all()


@pytest.mark.on("torch")
def test_it_pays():
    """The shipped model reads what it wrote itself: the better the way to round, the nearer are its predictions."""
    rwkv = RWKV.from_preset("finch-jargon")
    written = rwkv.generate([[0]] * 6, max_new_tokens=200, seed=0, stop_token_ids=None)  # side by side: quick
    wanted = log_p(rwkv, written[:2])
    losses = []
    for options in ({}, {"calibrate": written[2:]}, {"calibrate": written[2:], "compensate": True}):
        rounded = RWKV.from_preset("finch-jargon")
        rounded.quantize("int4", **options)
        losses.append((np.exp(wanted) * (wanted - log_p(rounded, written[:2]))).sum(-1).mean())
    plain, calibrated, compensated = losses
    assert compensated < 0.95 * calibrated and calibrated < plain


def log_p(rwkv, ids):
    logits = np.float64(ops.convert_to_numpy(ops.stop_gradient(rwkv.forward(np.array(ids))[0])))
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_bad_calls():
    rwkv = small_model("7")
    with pytest.raises(ValueError, match="Give texts"):
        rwkv.quantize("int4", compensate=True)
    with pytest.raises(ValueError, match="0 to 39"):
        rwkv.quantize("int4", calibrate=[1, 50])
    rwkv.backbone.blocks[1].time_mix.mix.assign(ops.full(rwkv.backbone.blocks[1].time_mix.mix.shape, np.nan))
    with pytest.raises(ValueError, match=r"blocks/1/time_mix/.* what is no number"):
        rwkv.quantize("int4", calibrate=IDS)
    assert not any(layer.scheme for layer in projections(rwkv.backbone).values())
