"""Standard streams may be closed, full, or without a reader: no traceback, and a code that says how it ended."""

import os
import subprocess
import sys

import pytest

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
