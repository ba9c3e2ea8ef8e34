"""The vocabulary that belongs to a model."""

import importlib.util
import logging
import sys

import pytest

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, VOCABULARY_NAME, PileTokenizer, find_tokenizer, load_tokenizer

pytestmark = pytest.mark.backend_free

BYTES = {byte + 1: bytes([byte]) for byte in range(256)}
SMALL = RWKV_TOKENIZER.from_entries(BYTES | {257: b"ab"})


@pytest.mark.parametrize("name", ["rwkv_vocab_mine.txt", "vocab.txt"])
@pytest.mark.parametrize("near", ["model.pth", "."])
def test_beside_the_weights(tmp_path, name, near):
    SMALL.save(tmp_path / name)
    (tmp_path / "model.pth").touch()
    assert find_tokenizer(tmp_path / near, 258).encode("abc") == [257, 100]


def test_nothing_to_find(tmp_path):
    assert find_tokenizer(tmp_path, 258) is None
    assert find_tokenizer(None, 258) is None
    assert find_tokenizer(tmp_path / "absent" / "model.pth", 50277) is None


@pytest.mark.parametrize("size", [65529, 65530, 65536])
def test_world_sizes_fall_back(tmp_path, size):
    assert find_tokenizer(tmp_path, size).encode("Hello world") == [33155, 40213]


def test_beside_wins_over_world(tmp_path):
    SMALL.save(tmp_path / VOCABULARY_NAME)
    assert find_tokenizer(tmp_path, 65536).vocab_size == 258


def test_too_large_for_the_model(tmp_path, caplog):
    SMALL.save(tmp_path / "rwkv_vocab_mine.txt")
    with caplog.at_level(logging.WARNING, "bert4keras_rwkv"):
        assert find_tokenizer(tmp_path, 257) is None
    assert "ids up to 257, the model 257 rows" in caplog.text


@pytest.mark.parametrize("text", ["[PAD]\n[CLS]\n", "", "b'<s>'\nb'\\x00'\n", "b'<s>'\nthe\n"])
def test_other_vocab_txt_is_left_alone(tmp_path, text):
    """BERT's file of that name has bare words; one of literals is taken only if it is a whole vocabulary."""
    (tmp_path / "vocab.txt").write_text(text)
    assert find_tokenizer(tmp_path, 258) is None


def test_vocab_txt_of_old_hugging_face_folders(tmp_path):
    """A literal a line, the line's number its id; it is the same vocabulary."""
    literals = ["b'<s>'", *(repr(SMALL.token_bytes(token_id)) for token_id in range(1, SMALL.vocab_size))]
    (tmp_path / "vocab.txt").write_text("\n".join(literals) + "\n")
    found = find_tokenizer(tmp_path, 258)
    assert found.encode("abc\n") == SMALL.encode("abc\n") == [257, 100, 11]
    assert found.vocab_size == SMALL.vocab_size
    assert found.decode([0, 257]) == "ab"


def test_the_size_chooses_between_files(tmp_path, bpe_json):
    """World and Pile files side by side, as in a folder of several checkpoints."""
    SMALL.save(tmp_path / "vocab.txt")
    (tmp_path / "20B_tokenizer.json").write_text(bpe_json)
    assert isinstance(find_tokenizer(tmp_path, 50277), PileTokenizer)
    assert isinstance(find_tokenizer(tmp_path, 50432), PileTokenizer)
    assert find_tokenizer(tmp_path, 65536).vocab_size == 258
    (tmp_path / "vocab.txt").unlink()
    assert isinstance(find_tokenizer(tmp_path, 400), PileTokenizer)
    assert find_tokenizer(tmp_path, 65536).vocab_size == 65530


def test_a_tokenizer_json_of_another_kind_is_left_alone(tmp_path, caplog):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.WARNING, "bert4keras_rwkv"):
        assert find_tokenizer(tmp_path, 400) is None
    assert "byte-level BPE" in caplog.text


def test_a_pile_model_without_its_file(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "bert4keras_rwkv"):
        assert find_tokenizer(tmp_path, 50277) is None
    assert "20B_tokenizer.json" in caplog.text


def test_a_pile_model_without_the_library(tmp_path, bpe_json, monkeypatch, caplog):
    (tmp_path / "tokenizer.json").write_text(bpe_json)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with caplog.at_level(logging.WARNING, "bert4keras_rwkv"):
        assert find_tokenizer(tmp_path, 50277) is None
    assert "pip install 'bert4keras_rwkv[pile]'" in caplog.text


def test_any_file_by_its_path(tmp_path, bpe_json):
    SMALL.save(tmp_path / "mine")
    (tmp_path / "other").write_text(bpe_json)
    assert load_tokenizer(tmp_path / "mine").encode("ab") == [257]
    assert load_tokenizer(tmp_path / "other").encode("ab") == PileTokenizer.from_json(bpe_json).encode("ab")
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "absent")


def test_a_damaged_file_is_an_error(tmp_path):
    SMALL.save(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes()[:-3])
    with pytest.raises(ValueError, match="line 257"):
        find_tokenizer(tmp_path, 258)


def test_world_model_without_the_rwkv_package(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "bert4keras_rwkv"):
        assert find_tokenizer(None, 65536) is None
    assert "pip install rwkv" in caplog.text
