"""The vocabulary inside a GGUF file: what was written is read, and llama.cpp's own texts collide with none of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights import open_weights
from bert4keras_rwkv.weights.formats.llama_cpp.tokens import escaped, unescaped
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from tests.official import official_weights
from tests.weights.formats.gguf_files import config_for, keys, small_tokenizer

pytestmark = pytest.mark.backend_free


def test_the_vocabulary_of_a_file(tmp_path, rng):
    """What was written is read: bytes of every kind, ids without text, and a token that looks like llama.cpp's own."""
    tokens = ["你好".encode(), b"\\x41", b"'\"", b"<s>", b"[PAD299]"]
    tokenizer = small_tokenizer(tokens=tokens)
    arrays = official_weights("6", rng, ids=300)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), tokenizer=tokenizer)
    with open_weights(tmp_path / "a.gguf") as tensors:
        found = RWKV_TOKENIZER.from_entries(tensors.metadata["vocabulary"])
    text = "你好 <s>\\x41'\"\r\n\n\t[PAD299]\x00"
    assert found.vocab_size == 263 and found.encode(text) == tokenizer.encode(text)
    fields = keys(tmp_path / "a.gguf")
    texts = fields["tokenizer.ggml.tokens"]
    assert len(set(texts)) == len(texts) == 300
    assert texts[:3] == ["[<s>]", "\\x00", "\\x01"] and texts[258:261] == [
        "\\xe4\\xbd\\xa0\\xe5\\xa5\\xbd",
        "\\\\x41",
        "\\'\"",
    ]
    assert texts[262:265] == ["[PAD299]", "[PAD263]", "[PAD264]"] and texts[299] == "[[PAD299]]"
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds == [3] + [1] * 262 + [5] * 37
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")}
    assert ids == {"bos": 0, "eos": 0, "eot": 257} and fields["tokenizer.ggml.model"] == "rwkv"


def test_without_a_tokenizer(tmp_path, rng, caplog):
    arrays = official_weights("6", rng)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    texts = keys(tmp_path / "a.gguf")["tokenizer.ggml.tokens"]
    assert texts == ["<s>", *(f"[PAD{i}]" for i in range(1, 32))]
    with open_weights(tmp_path / "a.gguf") as tensors:
        assert tensors.metadata["vocabulary"] is None
    assert not caplog.messages


def test_the_world_vocabulary(tmp_path, rng):
    """All 65,529 tokens survive, and none of them is one of llama.cpp's own texts."""
    world = RWKV_TOKENIZER()
    arrays = official_weights("6", rng, heads=1, head_size=2, layers=1, ids=65536)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "float16", world)
    with open_weights(tmp_path / "a.gguf") as tensors:
        assert tensors.metadata["vocabulary"] == {i: world.token_bytes(i) for i in range(1, 65530)}


@given(st.binary())
def test_escapes_are_pythons(token):
    """The text of a token is Python's literal, and back."""
    assert escaped(token) == repr(token)[2:-1]
    assert unescaped(escaped(token).encode()) == token
