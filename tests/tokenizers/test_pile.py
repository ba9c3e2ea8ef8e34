"""The Pile's tokenizer: against Hugging Face's library, which encodes here too, and against its decoding."""

import copy
import itertools
import json
import pickle
import random
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.tokenizers import PileTokenizer

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def small(bpe_json):
    return PileTokenizer.from_json(bpe_json)


@pytest.fixture(scope="module")
def pile(oracles):
    return PileTokenizer(oracles / "tokenizer" / "20B_tokenizer.json")


@pytest.fixture(scope="module")
def library(oracles):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(oracles / "tokenizer" / "20B_tokenizer.json"))


@settings(max_examples=50)
@given(text=st.text())
def test_text_round_trip(small, text):
    """But for the normal form, which the file asks for."""
    assert small.decode(small.encode(text)) == unicodedata.normalize("NFC", text)


@settings(max_examples=50)
@given(ids=st.lists(st.integers(0, 299)), cuts=st.lists(st.integers(0, 40)))
def test_any_split_is_the_whole(small, ids, cuts):
    """Characters of several tokens included: what a stream gives, joined, is the decoding of the whole."""
    stream, edges = small.stream(), sorted({0, *(cut for cut in cuts if cut < len(ids)), len(ids)})
    parts = [ids[a:b] for a, b in itertools.pairwise(edges)]
    assert "".join(stream.feed(part) for part in parts) + stream.flush() == small.decode(ids)


def test_a_character_comes_with_its_last_token(small):
    first, last = small.encode("\u2603")[:-1], small.encode("\u2603")[-1]
    stream = small.stream()
    assert first and "".join(stream.feed(one) for one in first) == ""
    assert stream.feed(last) == "\u2603"


def test_forms(small):
    ids = small.encode("the cat")
    assert small.encode(["the cat", ""]) == [ids, []]
    assert small.encode_bytes(b"the cat") == ids
    assert small.decode([ids, []]) == ["the cat", ""]
    assert small.decode_bytes(ids) == b"the cat"
    assert (small.end_token, small.token_bytes(0), small.vocab_size) == (0, b"", 300)
    assert small.encode("a<|endoftext|>b")[1:2] == [0]
    assert small.without_text(302) == (300, 301)


def test_errors(small):
    with pytest.raises(ValueError, match=r"0 \.\. 299\. Received: id 300 at position 1"):
        small.decode([1, 300])
    with pytest.raises(ValueError, match="byte 0xff at position 1"):
        small.encode_bytes(b"a\xff")
    with pytest.raises(ValueError, match="surrogate"):
        small.encode("a\ud800")
    with pytest.raises(TypeError, match="str or a list of str"):
        small.encode(b"a")


def test_padding_and_cutting_in_a_file_are_not_done(bpe_json):
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_str(bpe_json)
    bpe.enable_padding(length=9)
    bpe.enable_truncation(2)
    assert PileTokenizer.from_json(bpe.to_str()).encode("the cat dog")[-1] != 1
    assert PileTokenizer.from_json(bpe.to_str()).decode(bpe.encode("xyz").ids[:0]) == ""
    assert PileTokenizer.from_json(bpe.to_str()).encode("xyzw") == PileTokenizer.from_json(bpe_json).encode("xyzw")


def test_save_copy_and_pickle(small, bpe_json, tmp_path):
    small.save(tmp_path / small.file_name)
    assert (tmp_path / "tokenizer.json").read_text("utf-8") == bpe_json
    for other in (PileTokenizer(tmp_path / "tokenizer.json"), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert other.encode("the naïve café  x") == small.encode("the naïve café  x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j["added_tokens"].pop(0), r"special token <\|endoftext\|>"),
        (lambda j: j.update(decoder=None), "decoder NoneType"),
        (lambda j: j["model"]["vocab"].update({"\u4f60": 400}), "no byte-level BPE: its token"),
        (lambda j: j.update(model={"type": "Nothing"}), "no vocabulary of Hugging Face's"),
    ],
)
def test_files_of_another_kind(bpe_json, tmp_path, change, message):
    whole = json.loads(bpe_json)
    change(whole)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=message) as caught:
        PileTokenizer(path)
    assert "tokenizer.json" in str(caught.value)


def test_not_json(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="no JSON file: it begins with b'P'"):
        PileTokenizer(path)


@pytest.mark.parametrize("content", [b"{", b'{"a": \xff}', b'{"rows": [0]}', b"{" + b'"a": {' * 100_000, b"{}"])
def test_damaged_json(content, tmp_path, monkeypatch):
    path = tmp_path / "20B_tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"20B_tokenizer\.json"):
        PileTokenizer(path)
    monkeypatch.setattr("bert4keras_rwkv.tokenizers.pile.LARGEST", len(content) - 1)
    with pytest.raises(ValueError, match=f"more than {len(content) - 1} bytes"):
        PileTokenizer(path)


def test_without_the_library(bpe_json, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'bert4keras_rwkv\[pile\]'"):
        PileTokenizer.from_json(bpe_json)


@pytest.mark.oracle
def test_texts_as_the_library(pile, library, oracles):
    cases = json.loads((oracles / "tokenizer" / "cases.json").read_text("utf-8"))["text_cases"]
    for text in [case["text"] for case in cases]:
        ids = library.encode(text).ids
        assert pile.encode(text) == ids
        assert pile.decode(ids) == library.decode(ids)
        assert "<|endoftext|>" in text or pile.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.oracle
def test_random_ids_as_the_library(pile, library):
    """Broken characters are replaced alike."""
    draw = random.Random(3)
    for _ in range(200):
        ids = [draw.randrange(50277) for _ in range(9)]
        assert pile.decode(ids) == library.decode(ids)


@pytest.mark.oracle
def test_recorded_ids(pile):
    """Ids that Hugging Face's library gave for this file."""
    assert pile.encode("Hello world") == [12092, 1533]
    assert pile.encode("  two  spaces") == [50276, 9389, 50276, 31748]
    assert (pile.vocab_size, pile.end_token) == (50277, 0)
