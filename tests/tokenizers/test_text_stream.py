"""Text as its bytes come: joined, it is the decoding of the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free

BYTES = {byte + 1: bytes([byte]) for byte in range(256)}
TOKENIZER = RWKV_TOKENIZER.from_entries(BYTES | {257: "你好".encode(), 258: b"\xe5\xa5", 259: "é".encode() + b"\xf0"})


@given(st.lists(st.lists(st.integers(0, 259), max_size=8)))
def test_any_split_is_the_whole(parts):
    """Broken bytes included: a character is replaced by the same U+FFFD wherever the stream was cut."""
    stream = TOKENIZER.stream()
    text = "".join(stream.feed(part) for part in parts) + stream.flush()
    assert text == TOKENIZER.decode([token_id for part in parts for token_id in part])


@given(st.text())
def test_a_character_comes_with_its_last_byte(text):
    stream = TOKENIZER.stream()
    for character in text:
        *first, last = character.encode()
        assert all(stream.feed_bytes(bytes([byte])) == "" for byte in first)
        assert stream.pending == bytes(first)
        assert stream.feed(last + 1) == character
    assert stream.flush() == "" and stream.pending == b""


def test_flush_replaces_what_is_left_and_starts_again():
    stream = TOKENIZER.stream()
    assert stream.feed([258]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.feed(257) == "你好"


def test_bad_id_is_named_and_changes_nothing():
    stream = TOKENIZER.stream()
    stream.feed(258)
    with pytest.raises(ValueError, match="id 260 at position 1"):
        stream.feed([257, 260])
    assert stream.feed(0xBD + 1) == "\u597d"
