"""Standard streams may be closed, full, or without a reader: no traceback, and a code that says how it ended."""

import os
import subprocess
import sys

import pytest

from bert4keras_rwkv.cli import info, main

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell"),
]
INFO = "info finch-jargon"
DATA = "data a.jsonl b.txt"


@pytest.mark.parametrize(
    "arguments, streams, code, said",
    [
        (INFO, "<&-", 0, ""),
        (INFO, ">&-", 1, "bert4keras-rwkv info: stdout is closed, and the answer goes there.\n"),
        (INFO, "> /dev/full", 1, "bert4keras-rwkv info: No space left on device\n"),
        ("info nowhere", "2>&-", 1, ""),
        ("--help", ">&-", 0, ""),
        ("--help", "> /dev/full", 0, ""),
        (DATA, ">&-", 0, ""),
        (DATA, "<&- >&- 2>&-", 0, ""),
        ("generate --prompt -", "<&-", 2, "bert4keras-rwkv generate: The prompt is empty."),
    ],
)
def test_streams(arguments, streams, code, said, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\n')
    path = os.pathsep.join([os.getcwd(), *sys.path])
    ended = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m bert4keras_rwkv {arguments} {streams}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said) and ended.stderr.count("\n") == bool(said)
    if arguments == DATA:
        assert (tmp_path / "b.txt").read_text() == "hello"


def test_a_reader_that_went_away(tmp_path):
    """Before `--help` was written, too."""
    for arguments, code in ((["info", "finch-jargon"], 141), (["--help"], 0)):
        end, begin = os.pipe()
        os.close(end)
        with open(begin, "w") as stdout:
            ended = subprocess.run(
                [sys.executable, "-m", "bert4keras_rwkv", *arguments], stdout=stdout, stderr=subprocess.PIPE, timeout=60
            )
        assert (ended.returncode, ended.stderr) == (code, b"")


@pytest.mark.parametrize("raised, code, said", [(KeyboardInterrupt, 130, "\nStopped.\n"), (ValueError, 0, "")])
def test_an_interrupt_where_no_exception_leaves(raised, code, said, monkeypatch, capsys):
    """Ctrl-C stops a command there, too; any other exception is for the hook that there was, which is there again."""

    class Last:
        def __del__(self):
            raise raised

    def run(arguments):
        Last()
        for _ in range(10**9 if raised is KeyboardInterrupt else 0):  # what works until it is stopped
            pass

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(info, "run", run)
    assert main(["info", "finch-jargon"]) == code
    assert capsys.readouterr().err == said
    assert [one.exc_type for one in told] == [ValueError] * (code == 0)
    assert sys.unraisablehook == told.append
