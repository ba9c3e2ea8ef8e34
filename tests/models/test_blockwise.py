"""A file that is run block by block gives the logits of its model."""

import numpy as np
import pytest

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.models.blockwise import logits_from_file
from bert4keras_rwkv.weights import open_weights, write_pth
from bert4keras_rwkv.weights.files import config_of
from tests.models.small import arrays, assert_close, texts
from tests.official import VERSIONS, official_weights


@pytest.mark.parametrize("version", VERSIONS)
def test_one_forward(tmp_path, rng, version):
    """1e-4 of the largest logit: the same operations, with matrix products cut in other places."""
    write_pth(tmp_path / "a.pth", official_weights(version, rng))
    rwkv = build_transformer_model(checkpoint_path=tmp_path / "a.pth")
    ids = texts(rng, 2, 21, 32)
    done = []
    with open_weights(tmp_path / "a.pth") as tensors:
        config = config_of(tmp_path / "a.pth", tensors)
        found = logits_from_file(tensors, config, ids, lambda *counts: done.append(counts))
    want, state = rwkv.forward(ids)
    assert_close([found], arrays(want, state)[:1])
    assert done == [(1, 2), (2, 2)]


def test_the_embedding_is_read_in_pieces(tmp_path, rng):
    """More rows than one piece of the file: every id finds its own."""
    write_pth(tmp_path / "a.pth", official_weights("6", rng, ids=40_000, layers=1))
    ids = np.array([[0, 16_383, 16_384, 39_999, 5]])
    with open_weights(tmp_path / "a.pth") as tensors:
        assert len(list(tensors.entry("emb.weight").pieces())) > 2
        found = logits_from_file(tensors, config_of("nowhere", tensors), ids)
    want, state = build_transformer_model(checkpoint_path=tmp_path / "a.pth").forward(ids)
    assert_close([found], arrays(want, state)[:1])
