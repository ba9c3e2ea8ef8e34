"""Programs for bert4keras3's RWKV run once `bert4keras3` in their import lines is `bert4keras_rwkv.bert4keras3`.

They lie in programs/, as their users would have written them. Each is run in a folder with the files such users have.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.bert4keras3 import models
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.official import official_weights
from tests.weights.formats.bert4keras3_files import saved

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).resolve().parents[2]
BACKEND = keras.backend.backend()


TEXTS = ["下面 is below", "on the line", "a b c d e f", "我是中国人", "short", "RWKV", "some more", "and a last one"]
CONFIG = {
    "vocab_size": 262,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_head_size": 4,
    "intermediate_size": 12,
    "decomposer_size": 3,
    "time_decay_size": 5,
    "hidden_act": "relu",
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
}


@pytest.fixture
def folder(tmp_path, monkeypatch, rng):
    """A folder to work in, with a model as bert4keras3's users have it, and a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPS_KERNEL", "1")
    model = tmp_path / "RWKV6-tiny"
    model.mkdir()
    official = official_weights("6", rng, head_size=4, ids=CONFIG["vocab_size"])
    config = {**CONFIG, "intermediate_size": len(official["blocks.0.ffn.key.weight"])}
    (model / "config.json").write_text(json.dumps(config))
    saved(official, model / "model.weights.h5")
    tokens = [bytes([byte]) for byte in range(256)] + [b"  ", b"   ", b"    ", b"the ", b"\n\n"]
    RWKV_TOKENIZER.from_entries(dict(enumerate(tokens, 1))).save(model / "rwkv_vocab_v20230424.txt")
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    return tmp_path


def ported(name, folder):
    """A program with its import lines changed, in a file of the folder."""
    text, count = re.subn(
        r"^(from|import) bert4keras3\b",
        r"\1 bert4keras_rwkv.bert4keras3",
        (PROGRAMS / f"{name}.py").read_text("utf-8"),
        flags=re.M,
    )
    assert count
    path = folder / f"{name}.py"
    path.write_text(text, "utf-8")
    return path


def run(name, folder):
    """What a program's names are at its end."""
    return runpy.run_path(str(ported(name, folder)))


def ours(folder):
    """The same model from the main interface."""
    return build_transformer_model(folder / "RWKV6-tiny/config.json", folder / "RWKV6-tiny/model.weights.h5")


@pytest.mark.skipif(BACKEND != "jax", reason="the program names its backend")
def test_first_steps(folder):
    """In a process of its own, which names its backend and floatx."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", ported("first_steps", folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    tokenizer = RWKV_TOKENIZER(folder / "RWKV6-tiny/rwkv_vocab_v20230424.txt")
    assert str(tokenizer.encode(["hello world", "我是中国人"])) in shown
    assert "sums to True" in shown
    assert any("shape=(None, 16), dtype=int32" in line and "name=Input-Token" in line for line in shown)


@pytest.mark.on("jax")
def test_train(folder):
    """Training lowers the loss, from arrays and a generator; the weights come back as a model and into one."""
    found = run("train", folder)
    losses = found["first"].history["loss"] + found["second"].history["loss"]
    assert len(losses) == 2 * found["epochs"] and losses[-1] < losses[2] < losses[0]
    for model in (found["again"], found["loaded"]):
        for got, want in zip(model.get_weights(), found["rwkv"].get_weights(), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.on("jax")
def test_train_records(folder):
    losses = run("train_records", folder)["losses"]
    assert losses[-1] < losses[0]


@pytest.mark.on("jax")
def test_tune_state(folder):
    """Only states train, those of the recurrence and of both shifts; they are saved and loaded with the weights."""
    found = run("tune_state", folder)
    assert found["losses"][-1] < found["losses"][0]
    tuned = found["RWKV"].tuned_state()
    assert np.abs(tuned.wkv).min(axis=(2, 3, 4)).max() > 0 and np.abs(tuned.shift).max(axis=(2, 3)).min() > 0
    trained = {id(variable) for variable in found["train_model"].trainable_variables}
    starts = found["RWKV"].backbone.start_states
    assert trained == {id(variable) for start in starts for variable in start.trainable_variables}
    for got, want in zip(found["again"].model.get_weights(), found["rwkv"].get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
    weights = found["RWKV"].weights()
    for name, array in ours(folder).weights().items():
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.on("jax", "torch")
def test_generate(folder):
    """Greedy answers are those of the main interface; sampled ones are texts, in which the prompt stands first."""
    found = run("generate", folder)
    tokenizer = RWKV_TOKENIZER(folder / "RWKV6-tiny/rwkv_vocab_v20230424.txt")
    prompt = tokenizer.encode("\n下面")
    greedy = Sampling(temperature=0.0, penalty=1.3, penalty_window=8, max_penalty_range=(1, 5), mask_output=(0,))
    want = ours(folder).generate(prompt, found["maxlen"], stop_token_ids=261, sampling=greedy)
    assert found["answers"][0][0].tolist() == want
    for ids, text in found["answers"]:
        assert ids[: len(prompt)].tolist() == prompt
        assert text == tokenizer.decode(ids)


@pytest.mark.on("jax", "torch")
def test_carry_state(folder):
    """Pieces with the state between them, with `predict` or a call, are one long text."""
    found = run("carry_state", folder)
    prompt = RWKV_TOKENIZER(folder / "RWKV6-tiny/rwkv_vocab_v20230424.txt").encode(found["text"])
    length = found["maxlen"] + (found["n_chunk"] - 1) * (found["maxlen"] - 1)
    greedy = Sampling(temperature=0.0, mask_output=(0,))
    want = ours(folder).generate(prompt, length, stop_token_ids=None, sampling=greedy)
    for pieces in (found["predicted"], found["called"]):
        assert np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])]).tolist() == want


@pytest.mark.on("jax")
def test_the_models_compute_the_same(folder):
    """The probabilities of both interfaces, with arguments in bert4keras3's order."""
    x = np.array([[5, 6, 7, 8], [0, 0, 9, 10]])
    config, weights = folder / "RWKV6-tiny/config.json", folder / "RWKV6-tiny/model.weights.h5"
    got = models.build_transformer_model(config, None, "RWKV", "lm", True, weights, False).predict(x, verbose=0)
    want = ops.convert_to_numpy(ops.softmax(ours(folder).model.predict(x, verbose=0)))
    np.testing.assert_allclose(got, want, atol=1e-6)
    by_class = models.build_transformer_model(config, weights, models.RWKV6, return_keras_model=False)
    assert by_class.config == ours(folder).config
