"""Greedy longest match: against its definition, against the `rwkv` package, and there and back again."""

import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free

TEXT = """Dear all,\r\n\r\n\tthe   meeting is at 10:30 — "naïve" café, 你好，世界！今天天气不错。\n
def f(x, *y):\n        return {'a': x ** 2}  # コメントです\n\n\n\nПривет, мир 🙂👨‍👩‍👧 नमस्ते दुनिया  \n   \n done."""


@pytest.fixture(scope="module")
def world():
    return RWKV_TOKENIZER()


@pytest.fixture(scope="module")
def reference():
    """The `rwkv` package's own tokenizer."""
    import rwkv.rwkv_tokenizer

    folder = Path(rwkv.rwkv_tokenizer.__file__).parent
    return rwkv.rwkv_tokenizer.TRIE_TOKENIZER(str(folder / "rwkv_vocab_v20230424.txt"))


def small(*tokens):
    """A vocabulary of all bytes and `tokens`, byte b with id b + 1."""
    entries = {byte + 1: bytes([byte]) for byte in range(256)}
    return RWKV_TOKENIZER.from_entries(entries | {257 + i: token for i, token in enumerate(tokens)})


def greedy(tokenizer, data):
    """Longest match as the definition says it: the length tried from the longest down."""
    tokens = {tokenizer.token_bytes(i): i for i in range(1, tokenizer.vocab_size)}
    found = []
    while data:
        token = next(data[:n] for n in range(len(data), 0, -1) if data[:n] in tokens)
        found.append(tokens[token])
        data = data[len(token) :]
    return found


def test_texts_as_rwkv(world, reference):
    source = Path(__file__).read_text(encoding="utf-8")
    for text in (TEXT, TEXT * 3, source, source.upper(), ""):
        assert world.encode(text) == reference.encode(text)


def test_random_bytes_as_rwkv(world, reference):
    data = random.Random(5).randbytes(20_000)
    ids = world.encode_bytes(data)
    assert ids == reference.encodeBytes(data)
    assert world.decode_bytes(ids) == data


def test_every_id_as_rwkv(world, reference):
    for token_id, token in reference.idx2token.items():
        assert world.token_bytes(token_id) == token
        assert world.encode_bytes(token) == [token_id]
    assert world.vocab_size == max(reference.idx2token) + 1


def test_random_ids_as_rwkv(world, reference):
    """Ids that no encoder would put side by side: their text is encoded the same way."""
    ids = np.random.default_rng(1).integers(1, world.vocab_size, 5_000)
    data = world.decode_bytes(ids)
    assert data == reference.decodeBytes(ids.tolist())
    assert world.encode_bytes(data) == reference.encodeBytes(data)


@pytest.mark.oracle
def test_recorded_cases(world, oracles):
    cases = json.loads((oracles / "tokenizer" / "cases.json").read_text(encoding="utf-8"))
    for case in cases["text_cases"]:
        assert world.encode(case["text"]) == case["ids"]
        assert world.decode(case["ids"]) == case["text"]
    for case in cases["bytes_cases"]:
        assert world.encode_bytes(bytes.fromhex(case["hex"])) == case["ids"]
        assert world.decode_bytes(case["ids"]) == bytes.fromhex(case["hex"])


@given(st.text())
def test_text_round_trip(text):
    tokenizer = small(b"th", b" the", "é".encode(), b"\n\n", b"  ")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary())
def test_bytes_round_trip(data):
    tokenizer = small(b"\x80\x81", b"\x00\x00\x00", b" \x00")
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


FEW_BYTES = st.text(alphabet="ab \n", max_size=60).map(str.encode)


@given(st.lists(st.text(alphabet="ab \n", min_size=2, max_size=7).map(str.encode), unique=True), FEW_BYTES)
def test_any_vocabulary_is_matched_greedily(tokens, data):
    """Tokens that cross spaces and newlines in every way: cutting the text at these never changes the ids."""
    tokenizer = small(*tokens)
    assert tokenizer.encode_bytes(data) == greedy(tokenizer, data)


@settings(max_examples=40)
@given(FEW_BYTES, st.integers(1, 9))
def test_blocks_do_not_show(data, block):
    tokenizer = small(b"a b", b"ab", b"\n\n", b"  a", b"bb\na")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert4keras_rwkv.tokenizers.world.BLOCK", block)
        assert tokenizer.encode_bytes(data) == greedy(tokenizer, data)


def test_memory_of_pieces_is_bounded(monkeypatch):
    monkeypatch.setattr("bert4keras_rwkv.tokenizers.world.REMEMBERED_PIECES", 3)
    tokenizer = small(b" a", b"ab")
    data = b" a ab b aab" * 5
    assert tokenizer.encode_bytes(data) == greedy(tokenizer, data)
    assert len(tokenizer._pieces) <= 3


def test_form_of_the_input(world):
    assert world.encode("Hello world") == [33155, 40213]
    assert world.encode(["Hello world", ""]) == [[33155, 40213], []]
    assert world.encode(("Hello",)) == [[33155]]
    assert world.encode([]) == []
    assert world.encode_bytes(bytearray(b"Hello")) == [33155]


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: [np.int32(i) for i in ids]])
def test_decode_takes_any_integers(world, kind):
    assert world.decode(kind([33155, 40213])) == "Hello world"
    assert world.decode_bytes(kind([33155, 40213])) == b"Hello world"
    assert world.decode([kind([33155]), kind([40213])]) == ["Hello", " world"]


def test_decode_matrix_and_empty(world):
    assert world.decode(np.array([[33155, 0], [40213, 0]])) == ["Hello", " world"]
    assert world.decode([]) == "" and world.decode([[], [33155]]) == ["", "Hello"]
    assert world.decode(33155) == world.decode(np.int64(33155)) == "Hello"


def test_end_token_has_no_text(world):
    assert world.end_token == 0
    assert world.decode([0, 33155, 0, 0]) == "Hello"
    assert world.token_bytes(0) == b""


def test_broken_bytes_only_are_replaced(world):
    data = "a你".encode() + b"\xff" + "é".encode()[:1] + b"b"
    assert world.decode(world.encode_bytes(data)) == "a你\ufffd\ufffdb"


@pytest.mark.parametrize("bad", [65530, -1, 10**12])
def test_bad_id_is_named(world, bad):
    with pytest.raises(ValueError, match=rf"0 \.\. 65529\. Received: id {bad} at position 2\."):
        world.decode([1, 2, bad])
    with pytest.raises(ValueError, match=rf"id {bad} at row 1, position 0"):
        world.decode([[1, 2], [bad]])


@pytest.mark.parametrize("bad", [1.0, None, "a"])
def test_not_an_id_is_named(world, bad):
    with pytest.raises(TypeError, match=r"integers. Received: .* at position 1"):
        world.decode([1, bad])
    with pytest.raises(TypeError, match="at row 1, position 0"):
        world.decode([[1], [bad]])


@pytest.mark.parametrize("bad", [None, "text", {"a": 2}, 1.5, np.array([1.5]), [1, [2]], [[[1]]]])
def test_not_ids(world, bad):
    with pytest.raises(TypeError, match=r"Ids .* integers.*Received"):
        world.decode(bad)


@pytest.mark.parametrize("bad", [None, 5, b"bytes", ["a", 5], [["a"]]])
def test_not_text(world, bad):
    with pytest.raises(TypeError, match="str or a list of str"):
        world.encode(bad)


def test_surrogate_is_named(world):
    with pytest.raises(ValueError, match=r"'\\ud800' at position 2.*surrogate"):
        world.encode("ab\ud800c")


def test_copies_and_pickles(world):
    tokenizer = small(b"ab")
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode("abc") == [257, 100]
        assert other.vocab_size == 258
    assert repr(tokenizer) == "<RWKV_TOKENIZER vocab_size=258>"
