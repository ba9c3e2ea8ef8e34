"""`train` makes a preset folder of a configuration and data, as if it had never been stopped."""

import csv
import json

import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.cli import train as command
from bert4keras_rwkv.cli.arguments import parser
from bert4keras_rwkv.data.convert import open_documents
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.training import write_binidx, write_records
from bert4keras_rwkv.training.plan import TrainingPlan, packed, packed_held_out, predicted
from bert4keras_rwkv.weights import open_weights

CONFIG = {"model": "rwkv4", "vocab_size": 262, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
TEXTS = [f"hello the {number} hello " * 3 for number in range(12)]
STEPS = ["--steps", "6", "--batch-size", "2", "--length", "12", "--report-every", "2", "--save-every", "2"]
RECIPE = ["--learning-rate", "0.02", "--warm-up", "1"]


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A folder with a configuration, a vocabulary, and texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (model.parent / "rwkv_vocab_tiny.txt").rename(tmp_path / "vocab.txt")
    for name, texts in (("train", TEXTS), ("held", TEXTS[:2]), ("short", TEXTS[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path


def run(*arguments):
    return main(["train", *arguments])


def train(out, *more):
    return run(
        "config.json", "train.jsonl", "--out", out, "--tokenizer", "vocab.txt", "--held-out", "held.jsonl",
        *STEPS, *RECIPE, *more,
    )  # fmt: skip


def weights_of(folder):
    with open_weights(folder) as tensors:
        return {name: np.array(tensors[name]) for name in tensors}


def losses_of(folder):
    with open(folder / "training/losses.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.once
def test_stopped_and_started_again_it_is_the_same_training(here, capsys, monkeypatch):
    """A whole run; a run that is stopped between two checkpoints and started again: the same losses and weights, bit by
    bit. Then it is done: the preset has its vocabulary, no checkpoint is left, and starting it trains nothing.
    """
    assert train("whole") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Wrote whole: step 6: loss ") and err.count(", held out ") == 3
    losses = losses_of(here / "whole")
    assert [row["step"] for row in losses] == ["2", "4", "6"]
    assert float(losses[-1]["held_out"]) < float(losses[0]["held_out"]) < 6
    say = command._say

    def stop(plan, step, *row):
        say(plan, step, *row)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "_say", stop)
        assert train("parts") == 130
    assert not (here / "parts/config.json").exists() and list((here / "parts/training").glob("*.safetensors"))
    assert train("parts") == 0
    assert capsys.readouterr().err.count("step 4: ") == 2
    assert losses_of(here / "parts") == losses
    whole, parts = weights_of(here / "whole"), weights_of(here / "parts")
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    assert not list((here / "parts/training").glob("*.safetensors"))
    assert (here / "parts/vocab.txt").exists()
    assert train("parts") == 0
    assert capsys.readouterr().out.startswith("parts is trained already: step 6: loss ")
    assert train("parts", "--seed", "1") == 1
    assert "holds another training: data=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_trained_on(here, capsys):
    """From a weight file and its vocabulary, with ids as data, in mixed precision and with recomputed blocks."""
    (here / "vocab.txt").rename(here / "model/vocab.txt")
    write_records("train.tfrecord", [[5, 6, 7, 8] * 5] * 9)
    options = ["--dtype", "mixed_bfloat16", "--remat", *STEPS, *RECIPE]
    before = weights_of(here / "model/tiny.pth")
    assert run("model/tiny.pth", "train.tfrecord", "--out", "on", *options) == 0
    after = weights_of(here / "on")
    assert {name: value.shape for name, value in after.items()} == {name: v.shape for name, v in before.items()}
    assert all(np.isfinite(value).all() for value in after.values())
    assert float(losses_of(here / "on")[-1]["loss"]) < float(losses_of(here / "on")[0]["loss"])
    assert (here / "on/vocab.txt").exists()


@pytest.mark.backend_free
@pytest.mark.parametrize("form", ["a.jsonl", "a.txt", "a.tfrecord", "a.bin"])
def test_documents_of_every_form(here, form):
    """The same documents, whatever they are kept in; they can be asked for by number."""
    tokenizer = RWKV_TOKENIZER("vocab.txt")
    ids = tokenizer.encode(TEXTS)
    (here / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, ""]))
    (here / "a.txt").write_text("\n--\n".join(TEXTS))
    write_records("a.tfrecord", ids)
    write_binidx("a", ids)
    documents = open_documents(form, tokenizer, separator="--")
    assert [documents[number].ids.tolist() for number in range(len(documents))] == ids


@pytest.mark.backend_free
def test_held_out_tokens_are_predicted_once(here):
    """Every token of a held-out set but those that begin a row or a document; a short set makes smaller batches."""
    plan = TrainingPlan(steps=2, batch_size=8, length=5, learning_rate=1.0, weight_decay=0.0, warm_up=1)
    batches = packed_held_out([[1, 2, 3, 4, 5], [6, 7, 8]], plan, 9)  # 1 2 3 4 5 | 0 6 7 8 0
    assert batches.batch_size == 2 and len(batches) == 1
    assert predicted(batches.batch(0)) == 4 + 3
    assert packed([[1] * 9] * 8, plan, 9).order["seed"] == 0


@pytest.mark.backend_free
@pytest.mark.parametrize(("steps", "warm_up"), [("1", 0), ("10", 9), ("11", 10), ("500", 10)])
def test_a_short_training_has_a_short_warm_up(steps, warm_up):
    """Where nobody chose one."""
    given = parser().parse_args(["train", "config.json", "a.jsonl", "--out", "out", "--steps", steps])
    assert command.chosen_plan(given).warm_up == warm_up


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config.json", "short.jsonl", "--tokenizer", "vocab.txt"], "The data set is shorter than a batch"),
        (["config.json", "train.jsonl"], "holds text, which needs a tokenizer"),
        (["config.json", "train.jsonl", "--tokenizer", "finch-jargon"], 'Set "vocab_size": 2048 in its configuration'),
        (["config.json", "no.jsonl", "--tokenizer", "vocab.txt"], "There is no jsonl data set"),
        (["no.json", "train.jsonl"], "no.json"),
        (["config.json", "train.jsonl", "--warm-up", "1000"], "Take a `warm_up` below 1000, or more steps"),
        (["config.json", "train.jsonl", "--out", "config.json"], "is no folder"),
        (
            ["config.json", "train.jsonl", "--tokenizer", "vocab.txt", "--length", "12", "--held-out", "empty.jsonl"],
            "--held-out: The data set is shorter",
        ),
        (
            ["config.json", "train.jsonl", "--tokenizer", "vocab.txt", "--length", "12", "--out", "model"],
            "is no training",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(here, arguments, said, capsys):
    (here / "empty.jsonl").write_text("")
    assert run("--out", "out", *arguments) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (here / "out").exists()
