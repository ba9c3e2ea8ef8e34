"""The vocabulary that belongs to a model."""

import importlib.util
import logging

import pytest

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, VOCABULARY_NAME, find_tokenizer

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


def test_other_vocab_txt_is_left_alone(tmp_path):
    """Hugging Face's file of that name holds one token a line."""
    (tmp_path / "vocab.txt").write_text("b'<s>'\nb'\\x00'\n")
    assert find_tokenizer(tmp_path, 258) is None


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
