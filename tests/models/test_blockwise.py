"""A file that is run block by block gives the logits of its model."""

import pytest

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.models.blockwise import logits_from_file
from bert4keras_rwkv.weights import tensors as tensors_module
from bert4keras_rwkv.weights import write_pth
from bert4keras_rwkv.weights.checkpoint import open_checkpoint
from tests.models.small import arrays, assert_close, texts
from tests.official import official_weights


@pytest.mark.once
@pytest.mark.parametrize("version", [*(pytest.param(v, marks=pytest.mark.on("torch")) for v in ("4", "5.1", "6")), "7"])
def test_one_forward(tmp_path, rng, monkeypatch, version):
    """1e-4 of the largest logit: the same operations, with matrix products cut in other places. Matrices are read a few
    rows at a time, so that every id finds its own.
    """
    monkeypatch.setattr(tensors_module, "PIECE", 200)
    write_pth(tmp_path / "a.pth", official_weights(version, rng))
    rwkv = build_transformer_model(checkpoint_path=tmp_path / "a.pth")
    ids = texts(rng, 2, 21, 32)
    done = []
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        tensors = checkpoint.tensors
        assert len(list(tensors.entry("emb.weight").pieces())) > 5
        found = logits_from_file(tensors, checkpoint.config, ids, lambda *counts: done.append(counts))
    want, state = rwkv.forward(ids)
    assert_close([found], arrays(want, state)[:1])
    assert done == [(1, 2), (2, 2)]
