"""Text as its bytes come: joined, it is the decoding of the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.tokenizers.text_stream import TokenText

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


@given(st.lists(st.integers(0, 259), max_size=12), st.lists(st.text("a你\ufffd", min_size=1, max_size=2), max_size=2))
def test_what_may_be_shown_is_the_text_of_whole_tokens_up_to_a_stop(ids, stops):
    """However it is cut: the pieces are the decoding up to the first stop, and before one every piece is whole tokens.

    A piece that is not the last never holds part of a token, so `shown` tokens are what was read of the pieces so far.
    """
    text, whole = TokenText(TOKENIZER, stops), TOKENIZER.decode(ids)
    end = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    given = ""
    for token_id in ids:
        if text.stopped:
            break
        given += text.feed(token_id)
        assert whole[:end].startswith(given)
        if not text.stopped:
            assert given == TOKENIZER.decode(ids[: text.shown])
    given += text.flush()
    assert given == whole[:end]
    assert text.stopped == (end < len(whole))
    assert whole[:end].startswith(TOKENIZER.decode(ids[: text.shown]))


@pytest.mark.parametrize(
    "stops, shown", [([], "aababc.abd"), (["abc"], "aab"), (["zzz"], "aababc.abd"), (["d", "c.a"], "aabab")]
)
@pytest.mark.parametrize("step", [1, 2, 3, 10])
def test_a_stop_is_found_however_the_text_is_cut(stops, shown, step):
    cut = [b"aababc.abd"[i : i + step] for i in range(0, 10, step)]
    tokens = sorted({token for token in cut if len(token) > 1})
    tokenizer = RWKV_TOKENIZER.from_entries(BYTES | dict(enumerate(tokens, 300)))
    text = TokenText(tokenizer, stops)
    pieces = [text.feed(tokenizer.encode_bytes(token)[0]) for token in cut if not text.stopped]
    assert "".join(pieces) + text.flush() == shown
    assert text.stopped == (shown != "aababc.abd")
