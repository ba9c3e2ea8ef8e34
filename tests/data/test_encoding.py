"""Bulk encoding gives what the tokenizer gives, in order, however many processes there are."""

import logging
import sys

import numpy as np
import pytest

from bert4keras_rwkv.data.encoding import bulk_encoder, encode_documents, encoded
from bert4keras_rwkv.data.sources import from_iterable
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free

ENTRIES = [bytes([byte]) for byte in range(256)] + [
    b" the",
    b"hello",
    b"\n\n",
    "é".encode(),
    "中".encode(),
    b"\xe4\xb8",
]


@pytest.fixture
def tokenizer():
    return RWKV_TOKENIZER.from_entries(dict(enumerate(ENTRIES, 1)))


@pytest.fixture
def texts(rng):
    """More than one chunk, of random characters, some empty."""
    letters = list(" the hello\n é中文\x00") + [" the", "hello", "\U0001f600"]
    return ["".join(rng.choice(letters, size)) for size in rng.integers(0, 30, 1100)]


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_are_what_the_tokenizer_gives(tokenizer, texts, workers):
    got = list(encoded(from_iterable(texts), tokenizer, workers))
    assert [place for place, _ in got] == [f"Document {i}" for i in range(len(texts))]
    assert [one.ids.tolist() for _, one in got] == tokenizer.encode(texts)
    assert all(one.answer is None and one.ids.dtype == np.int32 for _, one in got)


def test_any_iterable_is_encoded(tokenizer):
    """Texts and parsed lines together, without the empty ones."""
    got = encode_documents(iter(["hello", "", {"text": " the"}]), tokenizer)
    assert [one.ids.tolist() for one in got] == tokenizer.encode(["hello", " the"])


def test_the_rust_tokenizer_agrees(tokenizer, texts):
    """It is what is used where it is installed, with any vocabulary that has no gaps."""
    encode = bulk_encoder(tokenizer)
    assert encode != tokenizer.encode and encode(texts) == tokenizer.encode(texts)


def test_without_the_rust_tokenizer(tokenizer, texts, monkeypatch):
    """Not installed, or for a vocabulary with a gap: ours."""
    gap = RWKV_TOKENIZER.from_entries(dict(enumerate(ENTRIES, 2)))
    assert bulk_encoder(gap) == gap.encode
    monkeypatch.setitem(sys.modules, "pyrwkv_tokenizer", None)
    assert bulk_encoder(tokenizer) == tokenizer.encode


def test_a_rust_tokenizer_that_disagrees_is_not_used(tokenizer, monkeypatch, caplog):
    class Wrong:
        def __init__(self, path):
            self._real = RWKV_TOKENIZER(path)

        def encode_batch(self, texts):
            return [ids[:-1] if ids == [260] else ids for ids in self._real.encode(texts)]

    monkeypatch.setattr("pyrwkv_tokenizer.WorldTokenizer", Wrong)
    with caplog.at_level(logging.WARNING):
        assert bulk_encoder(tokenizer) == tokenizer.encode
    assert "not used" in caplog.text


def test_answers_are_marked(tokenizer):
    """Each part is encoded by itself, as it is when the model is asked."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the"}]
    ((_, one),) = encoded(from_iterable([turns]), tokenizer)
    parts = [tokenizer.encode(text) for text in ("User: hello\n\n", "Assistant:", " the\n\n")]
    assert one.ids.tolist() == [*parts[0], *parts[1], *parts[2]]
    assert one.answer.tolist() == [0] * len(parts[0] + parts[1]) + [1] * len(parts[2])


@pytest.mark.parametrize("workers", [1, 2])
def test_text_that_cannot_be_encoded_is_named(tokenizer, workers):
    """Half of a surrogate pair, which JSON can hold; from another process, too."""
    with pytest.raises(ValueError, match=r"Document 1 cannot be encoded: .*half of a surrogate pair"):
        list(encoded(from_iterable(["a", {"text": "b\ud800"}, "c"]), tokenizer, workers))
