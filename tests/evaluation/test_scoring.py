"""A passage scores what it scores alone, whatever is read with it and in what pieces."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.evaluation import Passage, score_passages, scoring
from tests.models.small import small_model, texts

pytestmark = pytest.mark.once

SIZES = [5, 40, 1, 17, 33, 2, 18]


@pytest.fixture(scope="module")
def rwkv():
    return small_model()


@pytest.fixture
def passages(rng):
    """Some longer than a piece, one of a single token; about half of the tokens count."""
    made = [Passage(texts(rng, 1, size)[0], rng.random(size) < 0.5, f"Text {i}") for i, size in enumerate(SIZES)]
    for one in made:
        one.counts[0] = False
    return made


def truth(rwkv, one, state=None):
    """From the logits of `forward`, read alone, in float64. Padded behind to one length: fewer programs."""
    ids, present = np.zeros((2, 1, 64), "int32")
    ids[0, : len(one.ids)], present[0, : len(one.ids)] = one.ids, 1
    logits = ops.convert_to_numpy(rwkv.forward(ids, state, present)[0])[0, : len(one.ids) - 1].astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counts = one.counts[1:]
    return np.take_along_axis(log_p, one.ids[1:, None], -1)[counts, 0], (logits.argmax(-1) == one.ids[1:])[counts]


@pytest.mark.parametrize(("batch_size", "chunk_len"), [(4, 16), (1, 16)])
def test_scores_are_those_of_forward(rwkv, passages, batch_size, chunk_len, monkeypatch):
    """1e-5 nats for rounding; in order, though they are sorted by length, and a few batches at a time are."""
    monkeypatch.setattr(scoring, "BATCHES_AHEAD", 1)
    read = []
    found = score_passages(rwkv, iter(passages), batch_size, chunk_len, progress=lambda *done: read.append(done))
    for one, got in zip(passages, found, strict=True):
        wanted, hits = truth(rwkv, one)
        np.testing.assert_allclose(got.log_p, wanted, atol=1e-5)
        np.testing.assert_array_equal(got.likeliest, hits)
    assert np.sum(read, axis=0).tolist() == [len(SIZES), sum(SIZES)]


def test_few_shapes_and_no_idle_rows(rwkv, passages, monkeypatch):
    """As passages end fewer rows are read, in whole pieces; a passage of one token is not read at all."""
    shapes, score = [], rwkv.score
    monkeypatch.setattr(rwkv, "score", lambda ids, *given: shapes.append(ids.shape) or score(ids, *given))
    list(score_passages(rwkv, passages[:5], 4, 16))
    assert shapes == [(4, 16), (4, 16), (1, 16)]


def test_every_passage_begins_in_the_state(rwkv, passages, rng):
    state = rwkv.score(*texts(rng, 2, 16)[:, None])[2]
    for one, got in zip(passages, score_passages(rwkv, passages, 4, 16, state), strict=True):
        np.testing.assert_allclose(got.log_p, truth(rwkv, one, state)[0], atol=1e-5)


def test_numbers_that_are_none_are_told(rwkv, passages, monkeypatch):
    score = rwkv.score

    def broken(*given):
        values, *rest = score(*given)
        return np.full_like(values, np.nan), *rest

    monkeypatch.setattr(rwkv, "score", broken)
    with pytest.raises(ValueError, match=r"Text 1: the model computes what is no number"):
        list(score_passages(rwkv, passages[1:2], 4, 16))


def test_batches_have_rows(rwkv):
    with pytest.raises(ValueError, match="at least 1"):
        next(score_passages(rwkv, [], batch_size=0))
