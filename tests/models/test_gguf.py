"""A model from a GGUF file: the logits it was recorded with, and text by the vocabulary that the file holds."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from tests.models.small import small_model


@pytest.fixture
def written(tmp_path):
    """A GGUF file with a small model and a vocabulary, and both."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"\n\n", b"hel", "中".encode()]
    tokenizer = RWKV_TOKENIZER.from_entries(dict(enumerate(tokens, 1)))
    rwkv = small_model("6", vocab_size=262)
    rwkv.tokenizer = tokenizer
    (tmp_path / "model").mkdir()
    path = tmp_path / "model/a.gguf"
    write_gguf(path, rwkv.weights(), rwkv.config, tokenizer=tokenizer)
    return path, rwkv


@pytest.mark.on("torch")
def test_text_from_a_file_alone(written):
    """No vocabulary lies beside it: the one inside encodes, decodes, and hides ids that have no text."""
    path, rwkv = written
    reread = build_transformer_model(checkpoint_path=path)
    assert reread.tokenizer.encode("hello 中") == rwkv.tokenizer.encode("hello 中")
    assert reread.generate("hello", 20, sampling="greedy") == rwkv.generate("hello", 20, sampling="greedy")


@pytest.mark.backend_free
def test_converting_keeps_the_vocabulary(written, tmp_path, capsys):
    """Into a preset and back again, and nobody says that there is none."""
    path, rwkv = written
    assert main(["convert", str(path), str(tmp_path / "preset")]) == 0
    assert RWKV_TOKENIZER(tmp_path / "preset/vocab.txt").encode("hello 中") == rwkv.tokenizer.encode("hello 中")
    assert main(["convert", str(tmp_path / "preset"), str(tmp_path / "b.gguf")]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()


@pytest.mark.on("torch")
@pytest.mark.once
@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "version", "bar"),
    [
        ("rwkv6-f32.gguf", "6", 1e-4),
        ("rwkv7-f16.gguf", "7", 0.01),
        ("rwkv6-q8_0.gguf", "6", 0.15),
        ("rwkv7-q8_0.gguf", "7", 0.15),
        ("rwkvcpp/reference_6-FP32.bin", "6", 1e-4),
        ("rwkvcpp/reference_7-FP32.bin", "7", 1e-4),
    ],
)
def test_recorded_answers(oracles, name, version, bar):
    """Of the weights before they were rounded, whose logits have a standard deviation of 1.5. With Q8_0 embedding and
    head are rounded too; llama.cpp itself is up to 0.14 away from these answers.
    """
    rwkv = build_transformer_model(checkpoint_path=oracles / "formats" / name, dtype="float32")
    answers = np.load(oracles / f"reference/reference_{version}.npz", allow_pickle=True)
    logits = ops.convert_to_numpy(rwkv.forward(answers["tokens"][None])[0])[0]
    assert np.abs(logits - answers["logits"]).max() < bar
