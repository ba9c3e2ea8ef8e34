"""What a model needs for documents is the sum over their tokens, however they come and are read."""

import math

import numpy as np
import pytest

from bert4keras_rwkv.evaluation import evaluate_text
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.training import Document
from tests.models.small import small_model, texts

pytestmark = pytest.mark.once

ENTRIES = [bytes([byte]) for byte in range(256)] + [b" the", b"hello", "é".encode()]
WORDS = ["hello the", "", "é the hello the hello", "the"]
SETTINGS = {"batch_size": 4, "chunk_len": 16}


@pytest.fixture(scope="module")
def rwkv():
    tokenizer = RWKV_TOKENIZER.from_entries(dict(enumerate(ENTRIES, 1)))
    return small_model(num_hidden_layers=1, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer)


def log_p(rwkv, ids, state=None):
    """Of each token but the first, read alone."""
    ids = np.array([ids], "int32")
    width = 32 - (ids.shape[1] - 1)
    padded = np.pad(ids, ((0, 0), (0, width)))
    present = np.arange(32)[None] < ids.shape[1] - 1
    values, hits, _ = rwkv.score(padded[:, :-1], padded[:, 1:], state, present)
    return values[present].astype("float64"), hits[present]


def test_a_document_stands_between_end_tokens(rwkv):
    """Both ends are those of `scripts/train_shipped_model.py`; the end has no bytes. 1e-6: float32 sums."""
    alone = [log_p(rwkv, [0, *rwkv.tokenizer.encode(text), 0]) for text in WORDS if text]
    score = evaluate_text(rwkv, WORDS, **SETTINGS)
    assert score.documents == 3 and score.tokens == sum(len(values) for values, _ in alone)
    assert score.size == len("".join(WORDS).encode())
    nats = -sum(values.sum() for values, _ in alone)
    assert score.nats == pytest.approx(nats, rel=1e-6)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / score.size, rel=1e-6)
    assert score.nats_per_token == pytest.approx(nats / score.tokens, rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(nats / score.tokens), rel=1e-5)
    assert score.accuracy == sum(hits.sum() for _, hits in alone) / score.tokens


def test_ends_that_are_not_wanted(rwkv):
    """Without the end behind, and without the end before: then the first token does not count, nor do its bytes."""
    ids = rwkv.tokenizer.encode("hello the hello")
    whole, _ = log_p(rwkv, [0, *ids, 0])
    open_end = evaluate_text(rwkv, [ids], with_end=False, **SETTINGS)
    assert (open_end.tokens, open_end.size) == (len(ids), 15)
    assert open_end.nats == pytest.approx(-whole[:-1].sum(), rel=1e-6)
    alone, _ = log_p(rwkv, [*ids, 0])
    begun = evaluate_text(rwkv, [ids], after_end=False, **SETTINGS)
    assert (begun.tokens, begun.size) == (len(ids), 15 - len("hello"))
    assert begun.nats == pytest.approx(-alone.sum(), rel=1e-6)


def test_a_state_stands_for_what_came_before(rwkv, rng):
    """A document that begins in a state has no end token before it, unless one asks for it."""
    ids = rwkv.tokenizer.encode("the hello the")
    state = rwkv.score(*texts(rng, 2, 31)[:, None])[2]
    for options, before in (({}, []), ({"after_end": True}, [0])):
        score = evaluate_text(rwkv, [ids], state=state, **options, **SETTINGS)
        assert score.nats == pytest.approx(-log_p(rwkv, [*before, *ids, 0], state)[0].sum(), rel=1e-6)


def test_only_answers_count(rwkv):
    """And the end behind an answer. Conversations are the text of World models, each part encoded by itself."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the"}]
    asked, answer = rwkv.tokenizer.encode(["User: hello\n\n", " the\n\n"])
    asked += rwkv.tokenizer.encode("Assistant:")
    values, _ = log_p(rwkv, [0, *asked, *answer, 0])
    mask = np.array([0] * len(asked) + [1] * len(answer), "int32")
    for form in (turns, {"messages": turns}, Document(np.array(asked + answer, "int32"), mask)):
        score = evaluate_text(rwkv, [form], **SETTINGS)
        assert (score.tokens, score.size) == (len(answer) + 1, len(" the\n\n"))
        assert score.nats == pytest.approx(-values[-len(answer) - 1 :].sum(), rel=1e-6)


def test_ids_without_a_tokenizer_have_no_bytes(rwkv, monkeypatch):
    ids = rwkv.tokenizer.encode("hello")
    monkeypatch.setattr(rwkv, "tokenizer", None)
    score = evaluate_text(rwkv, [ids], **SETTINGS)
    assert score.size is None and score.bits_per_byte is None and score.perplexity > 1
    with pytest.raises(ValueError, match="needs a tokenizer"):
        evaluate_text(rwkv, ["hello"], **SETTINGS)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([[1, 2], [1, 260]], "Document 1: id 260 at position 1"),
        ([("a.bin, item 3", Document(np.array([-1])))], "a.bin, item 3: id -1"),
        ([[]], "no token to predict in 0 documents"),
        (["a", [1], "b\ud800"], "Document 2 cannot be encoded: .*surrogate"),
        ([np.zeros((2, 2), int)], "one sequence"),
    ],
)
def test_what_cannot_be_evaluated_is_named(rwkv, documents, said):
    with pytest.raises(ValueError, match=said):
        evaluate_text(rwkv, documents, **SETTINGS)
