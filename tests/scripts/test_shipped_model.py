"""What the shipped model is made from: documents and a vocabulary."""

import importlib.util
from pathlib import Path

import pytest

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


JARGON = """                        The File

   ════════

   Table of Contents

   Verb Doubling

Verb Doubling

   A standard construction is to double
   a verb.

  F

   foo

   :foo: /foo/

   1. interj. Term of\xa0disgust.

   2. A sample:

 #define FOO

   :bar: n.

   ┌───┐
   │ 1 │
   └───┘

   [very common] The second
   metasyntactic variable.

   Shown:

       two
       lines
"""


def test_documents_are_entries_and_sections():
    assert script("make_corpus").documents(JARGON) == [
        "Verb Doubling\n\nA standard construction is to double a verb.",
        ":foo: /foo/\n\n1. interj. Term of disgust.\n\n2. A sample:",
        ":bar: n.\n\n[very common] The second metasyntactic variable.\n\nShown:\n\n    two\n    lines",
    ]


def test_held_out_is_every_twentieth():
    train, held_out = script("make_corpus").split([str(i) for i in range(45)])
    assert held_out == ["10", "30"]
    assert len(train) == 43 and not set(train) & set(held_out)


def test_vocabulary_is_a_world_file_and_shortens_the_text(tmp_path):
    text = "the cat sat on the mat, the hat sat on the cat; “naïve” 1984\n\n" * 20
    entries = script("make_vocabulary").learn([text], 280)
    assert list(entries) == list(range(1, 280))
    assert all(entries[byte + 1] == bytes([byte]) for byte in range(256))
    assert list(entries.values()) == sorted(entries.values(), key=lambda token: (len(token), token))
    tokenizer = RWKV_TOKENIZER.from_entries(entries)
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path / "vocab.txt")
    assert RWKV_TOKENIZER(tmp_path / "vocab.txt").vocab_size == 280


def test_parts_of_a_token_without_itself():
    parts = script("make_vocabulary")._parts
    assert parts(b"abcd", {b"abcd", b"ab", b"cd"}) == 2
    assert parts(b"abcd", {b"abcd", b"abc", b"bcd"}) == 2
    assert parts(b"ab", {b"ab"}) == 2


@pytest.mark.parametrize("size", [257, 5000])
def test_size_has_limits(size):
    with pytest.raises(ValueError, match=rf"size={size}"):
        script("make_vocabulary").learn(["text"], size)
