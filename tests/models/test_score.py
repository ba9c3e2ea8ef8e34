"""A score is the log-softmax of the logits at the token that came, however the text is read."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import reader
from tests.models.small import arrays, assert_close, small_model, texts

pytestmark = pytest.mark.once

B, T = 3, 32  # the same shapes everywhere: compiling takes the time


@pytest.fixture(scope="module")
def rwkv():
    return small_model()


def truth(rwkv, ids, targets, state=None):
    """From the logits of `forward`, in float64."""
    logits = ops.convert_to_numpy(rwkv.forward(ids, state)[0]).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(log_p, targets[..., None], -1)[..., 0], logits.argmax(-1) == targets


def test_scores_are_those_of_forward(rwkv, rng):
    """1e-5 nats: float32 logits around 1. The state afterwards is that of `forward`, too."""
    ids = texts(rng, B, T + 1)
    logits, after = rwkv.forward(ids[:, :-1])
    targets = np.where(rng.random((B, T)) < 0.5, ops.convert_to_numpy(logits).argmax(-1), ids[:, 1:])
    values, likeliest, state = rwkv.score(ids[:, :-1], targets)
    wanted, hits = truth(rwkv, ids[:, :-1], targets)
    assert values.dtype == np.float32 and likeliest.dtype == bool
    np.testing.assert_allclose(values, wanted, atol=1e-5)
    np.testing.assert_array_equal(likeliest, hits)
    assert hits.any() and not hits.all()
    assert_close(arrays(values, state), arrays(wanted, after), 1e-5)


def test_chunks_and_calls_do_not_matter(rwkv, rng, monkeypatch):
    """Read in pieces of 16, in two calls, or as few tokens at once as there is room for: 1e-5 nats, for rounding."""
    ids, targets = texts(rng, B, T), texts(rng, B, T)
    whole, _, after = rwkv.score(ids, targets)
    pieces = rwkv.score(ids, targets, chunk_len=16)
    first, _, state = rwkv.score(ids[:, :16], targets[:, :16])
    second, _, state = rwkv.score(ids[:, 16:], targets[:, 16:], state)
    monkeypatch.setattr(reader, "LOGITS", 17 * B * rwkv.config.vocab_size)
    asked = []
    monkeypatch.setattr(reader, "_pieces", lambda *given, real=reader._pieces: asked.append(given[2]) or real(*given))
    narrow = rwkv.score(ids, targets)
    assert asked == [16]
    for got, end in ((pieces[0], pieces[2]), (np.concatenate([first, second], 1), state), (narrow[0], narrow[2])):
        np.testing.assert_allclose(got, whole, atol=1e-5)
        assert_close(arrays(got, end), arrays(whole, after), 1e-4)


def test_padding_does_not_matter(rwkv, rng):
    """Each row alone gives what it gives among longer ones, padded on either side; what is no token scores 0."""
    ids, targets = texts(rng, B, T), texts(rng, B, T)
    present = np.ones((B, T), bool)
    present[1, :6] = present[2, 13:] = False
    values, likeliest, _ = rwkv.score(ids, targets, present=present)
    assert not values[~present].any() and not likeliest[~present].any()
    for row, size in enumerate(present.sum(1)):
        alone = np.zeros((3, B, T), "int32")
        alone[:, 0, :size] = ids[row, present[row]], targets[row, present[row]], np.ones(size)
        got = rwkv.score(alone[0], alone[1], present=alone[2])[0]
        np.testing.assert_allclose(values[row, present[row]], got[0, :size], atol=1e-5)


def test_from_a_state(rwkv, rng):
    """After a text that was read before, of one row or of each."""
    ids, targets = texts(rng, B, T), texts(rng, B, T)
    _, _, state = rwkv.score(ids, targets)
    for before in (state, state[1]):
        np.testing.assert_allclose(rwkv.score(ids, targets, before)[0], truth(rwkv, ids, targets, before)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "options", "said"),
    [
        (np.zeros((1, 3), int), {}, r"has the shape of `ids`, \(1, 4\)"),
        (np.full((1, 4), 40), {}, "0 to 39"),
        (np.zeros((1, 4), int), {"chunk_len": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_scored(rwkv, targets, options, said):
    with pytest.raises(ValueError, match=said):
        rwkv.score(np.zeros((1, 4), int), targets, **options)
