"""`bench` measures what it says, tells what it cannot measure, and leaves no process behind."""

import json
import signal
import time
from pathlib import Path

import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.evaluation.speed import programs

SMALL = ["--prompt", "8", "--decode", "2", "--rounds", "1", "--texts", "2"]


@pytest.mark.on("torch")
def test_figures_and_reasons(tmp_path, capsys, monkeypatch):
    """Two strategies are two rows whose figures fit each other; a device and a program that are not there say so."""
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    asked = [part for one in ("cpu fp32", "cpu fp32i8", "cuda:7 fp16") for part in ("--strategy", one)]
    text, picture = tmp_path / "a.json", tmp_path / "a.png"
    told = ["--compare", "llama.cpp", "--json", f"{text}", "--plot", f"{picture}"]
    assert main(["bench", *SMALL, *asked, *told]) == 0
    out = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(text.read_text("utf-8"))
    plain, packed, elsewhere, *others = found["rows"]
    assert [row["strategy"] for row in others] == ["cpu fp32", "cpu fp32i8"]
    assert all("pip install llama-cpp-python" in row["why_not"] for row in others)
    assert "no device 'cuda:7'" in elsewhere["why_not"] and not elsewhere["speeds"]
    assert all(row["label"] in out and (row["why_not"] or "") in out for row in found["rows"])
    assert (
        plain["held_bytes"] == plain["needed_bytes"]["cpu:0"] > packed["held_bytes"] == packed["needed_bytes"]["cpu:0"]
    )
    for row in (plain, packed):
        check_figures(row, found["limits"]["bytes_per_second"]["median"])


def check_figures(row, bandwidth):
    """The speeds of a row of one round are tokens over seconds, and its limit bytes over bytes."""
    assert row["why_not"] is None and not row["failures"]
    assert row["peak_bytes"] > row["held_bytes"] > row["step_bytes"]
    assert row["needed_bytes"] == {"cpu:0": row["held_bytes"]}
    assert 0 < row["load_seconds"] < row["start_seconds"]
    for command, tokens in {"prefill 8": 8, "decode 2": 2, "texts 2 2": 4}.items():
        speed = row["speeds"][command]
        assert set(speed["tokens_per_second"].values()) == {tokens / speed["seconds"][0]}
    speed = row["speeds"]["decode 2"]
    limit = speed["limit_tokens_per_second"]["median"]
    assert limit == pytest.approx(bandwidth / row["step_bytes"])
    assert speed["share_of_limit"] == pytest.approx(speed["tokens_per_second"]["median"] / limit)


@pytest.mark.on("torch")
@pytest.mark.parametrize(("sent", "code", "said"), [("SIGINT", 130, b"Stopped.\n"), ("SIGTERM", 143, b"")])
def test_who_ends_it_leaves_no_process_and_no_file(sent, code, said, start, tmp_path):
    """Though only the command hears it."""
    process = start("-m", "bert4keras_rwkv", "bench", *SMALL, "--json", tmp_path / "a.json", TMPDIR=str(tmp_path))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (there := children.read_text().split()):
        time.sleep(0.05)
    process.send_signal(getattr(signal, sent))
    assert process.wait(timeout=60) == code
    assert process.stderr.read().endswith(said) and not process.stdout.read()
    assert not any(Path(f"/proc/{child}").exists() for child in there) and not list(tmp_path.iterdir())


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "given, told",
    [
        (["--compare", "rwkv,ollama"], "rwkv or llama.cpp, or rwkv,llama.cpp, is expected. Received: 'rwkv,ollama'"),
        (["--strategy", "cpu fp8"], "There can be a dtype"),
    ],
)
def test_what_cannot_be_asked(given, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *given])
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "given, code, told",
    [
        (["--plot", "a.txt"], 2, "--plot: A plot is written as .png, .svg, .pdf. Received: 'a.txt'."),
        (["--json", "nowhere/a.json"], 1, "no such folder"),
        (["--model", "nothing"], 1, "nothing"),
        (["--threads", "5000"], 1, "`threads` is at most"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_started(given, code, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.Popen", None)
    assert main(["bench", *given]) == code
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())
