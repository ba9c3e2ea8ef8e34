"""Where a command cannot write is found before it loads a model."""

import os
import sys

import pytest

from bert4keras_rwkv.cli import convert, main, train, tune

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(sys.platform == "win32", reason="needs pipes that have names"),
]
COMMANDS = {
    "tune": ["--model", "model/tiny.pth", "--data", "a.jsonl", "--out"],
    "train": ["model/tiny.pth", "a.jsonl", "--out"],
    "convert": ["model/tiny.pth"],
    "data": ["a.jsonl"],
    "state": ["a.state", "--model", "model/tiny.pth", "--out"],
}
FOLDERS = ("train",)


class Loaded(Exception):
    """It went too far."""


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A model and data; whatever takes long is not reached."""

    def loaded(*arguments, **options):
        raise Loaded

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\n')
    for module in (tune, train):
        monkeypatch.setattr(module, "choose_engine", loaded)
    monkeypatch.setattr(convert, "open_checkpoint", loaded)
    monkeypatch.setattr("bert4keras_rwkv.cli.state.open_checkpoint", loaded)
    monkeypatch.setattr("bert4keras_rwkv.data.sources.read_jsonl", loaded)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("target", ["folder.jsonl", "pipe.jsonl", "nowhere/a.jsonl", "a.jsonl/b.jsonl", "/dev/full"])
def test_found_before_anything_is_loaded(command, target, here, capsys):
    """A folder with something in it, a pipe, a folder that is not there, a file that is none, a device."""
    if command in FOLDERS and target.startswith("nowhere"):
        pytest.skip("folders are made")
    (here / "folder.jsonl").mkdir()
    (here / "folder.jsonl" / "mine").write_text("mine")
    os.mkfifo(here / "pipe.jsonl")
    before = sorted(here.rglob("*"))
    extra = {"convert": ["--to", "pth"], "data": ["--to", "jsonl"]}.get(command, [])
    assert main([command, *COMMANDS[command], target, *extra]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"bert4keras-rwkv {command}: ") and told.count("\n") == 1
    assert any(part in told for part in (target, os.path.dirname(target) or target))
    assert sorted(here.rglob("*")) == before


def test_data_that_are_not_there(here, capsys):
    for arguments in (["tune", "--out", "a.state", "--data"], ["train", "model/tiny.pth", "--out", "a"]):
        assert main([*arguments, "no.jsonl"]) == 1
        assert "There is no jsonl data set 'no.jsonl'" in capsys.readouterr().err
