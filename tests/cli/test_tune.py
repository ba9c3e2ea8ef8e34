"""`tune` writes what makes held-out texts likelier, and `generate` begins with it."""

import json

import keras
import numpy as np
import pytest

from bert4keras_rwkv.cli import backend, main
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.training import tune as tuning
from bert4keras_rwkv.training.callbacks import TrainingCheckpoint

SMALL = ["--length", "16", "--batch-size", "2"]
RATE = ["--learning-rate", "0.03"]  # the defaults suit the shipped model


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """This process' JAX stays as it is."""
    monkeypatch.setattr(backend, "keep_compiled_programs", lambda: None)


@pytest.fixture
def data(tmp_path):
    """Texts of one kind."""
    lines = [json.dumps({"text": f"hello the {'hello ' * (i % 3)}end"}) for i in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"


def run(*arguments):
    return main([*map(str, arguments), "--backend", keras.config.backend()])


def losses(told):
    """Before and after, of what was printed."""
    words = told.replace(",", "").split()
    return [float(words[words.index(name) - 1]) for name in ("before", "after")]


def test_a_state_from_data_to_text(model, data, tmp_path, capsys):
    """The held-out loss falls, the file is the state that was tuned, `generate` writes what the model does with it, and
    nothing else is left.
    """
    out = tmp_path / "a.pth"
    assert run("tune", "--model", model, "--data", data, "--out", out, *SMALL, "--steps", 10, *RATE) == 0
    told = capsys.readouterr()
    before, after = losses(told.out)
    assert after < before and "100%: loss" in told.err
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a.jsonl", "a.pth"}
    rwkv = RWKV.from_preset(model)
    state = rwkv.load_state(out)
    assert state.wkv.any() and not state.shift.any()
    want = "".join(rwkv.stream("hello", 12, sampling="greedy", state=state))
    options = ["--prompt", "hello", "--max-length", 12, "--temperature", 0]
    assert run("generate", "--model", model, "--state", out, *options) == 0
    assert capsys.readouterr().out == want + "\n"


@pytest.mark.on("torch")
@pytest.mark.parametrize("base", [[], ["--quantize", "int4"]])
def test_an_adapter_with_a_state(base, model, data, tmp_path, capsys):
    """LoRA on the base or on a rounded one, with a state of both kinds, in one file for the model as it was. Of
    conversations answers count alone.
    """
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the end"}]
    data.write_text(f"{data.read_text()}\n{json.dumps({'messages': turns})}")
    out = tmp_path / "a.safetensors"
    options = ["--mode", "state+lora", "--time-shift", "--rank", 2, "--targets", "key", "value", *base]
    assert run("tune", "--model", model, "--data", data, "--out", out, *SMALL, *options, "--epochs", 4) == 0
    before, after = losses(capsys.readouterr().out)
    assert after < before
    rwkv = RWKV.from_preset(model)
    rwkv.load_adapter(out)
    assert rwkv.tuned_state().shift.any() and rwkv.tuned_state().wkv.any()


@pytest.mark.on("torch")
def test_a_prompt_without_data(model, tmp_path, capsys):
    """The model writes the texts itself. The prompt may lie in a file."""
    (tmp_path / "prompt.txt").write_text("hello hello hello the")
    options = ["--mode", "prompt", "--prompt", tmp_path / "prompt.txt", "--out", tmp_path / "a.st", "--steps", 10]
    assert run("tune", "--model", model, *SMALL, *options) == 0
    told = capsys.readouterr().out
    assert "divergence from the prompt" in told and all(losses(told))
    assert RWKV.from_preset(model).load_state(tmp_path / "a.st").wkv.any()


@pytest.mark.on("torch")
def test_what_was_stopped_goes_on(model, data, tmp_path, capsys, monkeypatch):
    """Stopped in the middle and started again, the same state to the last bit as without a stop."""
    command = ["tune", "--model", model, "--data", data, *SMALL, "--steps", 10, *RATE]
    assert run(*command, "--out", tmp_path / "whole.state") == 0
    begin, seen = TrainingCheckpoint.on_epoch_begin, []

    def stopped(self, epoch, logs=None):
        seen.append(epoch)
        if seen == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    monkeypatch.setattr(TrainingCheckpoint, "on_epoch_begin", stopped)
    assert run(*command, "--out", tmp_path / "parts.state") == 130
    assert (tmp_path / "parts.state.training").is_dir() and not (tmp_path / "parts.state").exists()
    other = ["--learning-rate", 0.5, "--debug"]
    with pytest.raises(ValueError, match="another training"):
        run(*command, "--out", tmp_path / "parts.state", *other)
    assert run(*command, "--out", tmp_path / "parts.state") == 0
    assert seen == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    whole, parts = (RWKVState.load(tmp_path / f"{name}.state") for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole.wkv, parts.wkv)


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--out", "a.state"], 2, "needs --data"),
        (["--out", "nowhere/a.state", "--data", "a.jsonl"], 1, "no such folder"),
        (["--out", "a.pth", "--data", "a.jsonl", "--time-shift"], 1, "last inputs of the layers. Give another suffix"),
        (["--out", "a.pth", "--data", "a.jsonl", "--mode", "state+lora"], 1, "a state with a LoRA"),
        (["--out", "a.pth", "--data", "a.jsonl", "--mode", "lora"], 1, "choose `targets`"),
        (["--out", "a.state", "--data", "a.jsonl", "--mode", "lora", "--time-shift"], 2, "belongs to a state"),
        (["--out", "a.state", "--data", "a.jsonl", "--targets", "key"], 2, "belong to a LoRA"),
        (["--out", "a.state", "--mode", "prompt"], 2, "needs a prompt"),
        (["--out", "a.state", "--data", "a.jsonl", "--steps", "2", "--epochs", "2"], 2, "one of them"),
        (["--out", "a.state", "--data", "a.jsonl", "--batch-size", "500"], 1, "shorter than a batch"),
        (["--out", "a.state", "--data", "one.jsonl"], 1, "held out"),
        (["--out", "a.state", "--data", "empty.jsonl"], 1, "'empty.jsonl' holds no document"),
        (["--out", "a.state", "--data", "a.jsonl", "--held-out", "empty.jsonl"], 1, "'empty.jsonl' holds no document"),
    ],
)
def test_errors_are_told_before_anything_is_trained(model, data, options, code, message, capsys, monkeypatch):
    monkeypatch.chdir(data.parent)
    (data.parent / "one.jsonl").write_text('{"text": "hello"}')
    (data.parent / "empty.jsonl").write_text("")
    monkeypatch.setattr(tuning, "Tuned", None)  # what comes of a training
    assert run("tune", "--model", model, *SMALL, *options) == code
    assert message in capsys.readouterr().err
    assert not list(data.parent.glob("a.[ps]*"))


@pytest.mark.on("torch")
def test_no_other_backend_is_loaded(model, data, tmp_path, command):
    """TensorFlow would greet on stderr, where losses are told and nothing else."""
    options = ["--mode", "lora", "--data", data, "--out", tmp_path / "a.safetensors", *SMALL, "--steps", 1]
    code, _, said = command("tune", "--model", model, *options)
    assert code == 0 and [line.partition("loss")[0] for line in said.splitlines()] == ["100%: "]


@pytest.mark.backend_free
@pytest.mark.parametrize("when", ["meanwhile", "at the end"])
def test_a_loss_that_is_no_longer_finite(when, model, data, tmp_path, capsys, monkeypatch):
    """Nothing is written, and another learning rate can be tried at once."""

    def trained(*arguments, callbacks, **options):
        callbacks[0].set_params({"epochs": 1})
        callbacks[0].on_epoch_end(0, {"loss": np.nan if when == "meanwhile" else 1.0})

    monkeypatch.setattr(tuning, "fit_batches", trained)
    monkeypatch.setattr(tuning, "mean_loss", lambda *arguments: np.inf)
    assert run("tune", "--model", model, "--data", data, "--out", tmp_path / "a.pth", *SMALL, "--steps", 1) == 1
    assert "Take a smaller learning rate" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a.jsonl"}


def test_what_belongs_to_another_model_is_told(model, tmp_path, tiny_config, capsys):
    RWKVState.zeros(tiny_config).save(tmp_path / "a.state")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    for option, message in (
        (["--state", "a.state"], "is a state of rwkv6"),
        (["--adapter", "b.safetensors"], "b.safetensors"),
    ):
        path = tmp_path / option[1]
        assert run("generate", "--model", "finch-jargon", "--prompt", "a", option[0], path) == 1
        assert message in capsys.readouterr().err


@pytest.mark.backend_free
def test_states_are_averaged(model, tmp_path, capsys):
    """The command is `RWKVState.average`, and writes the forms of other programs."""
    rwkv = RWKV.from_preset(model)
    states = [rwkv.forward([ids])[1] for ids in ([1, 2, 3], [4, 5])]
    for name, state in zip("ab", states, strict=True):
        rwkv.save_state(state, tmp_path / f"{name}.state")
    sources = [tmp_path / "a.state", tmp_path / "b.state"]
    command = ["state", *map(str, sources), "--model", str(model), "--weights", "1", "3"]
    assert main([*command, "--out", str(tmp_path / "c.state")]) == 0
    assert main([*command, "--out", str(tmp_path / "d.pth")]) == 1
    assert "or --drop-shift" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "d.pth"), "--drop-shift"]) == 0
    want = RWKVState.average(states, [1, 3])
    for name in ("c.state", "d.pth"):
        np.testing.assert_array_equal(rwkv.load_state(tmp_path / name).wkv, want.wkv)
    np.testing.assert_array_equal(rwkv.load_state(tmp_path / "c.state").shift, want.shift)
