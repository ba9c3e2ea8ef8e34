"""The command line as a subprocess, and a tiny model for it."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from bert4keras_rwkv.ops.cache import NAME
from bert4keras_rwkv.ops.kernels import kept, library
from bert4keras_rwkv.weights import write_pth
from tests.official import official_weights

# What a shell starts in the background ignores Ctrl-C, and so would the commands that are started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def model(tmp_path, rng):
    """A random RWKV-6 of 262 ids with a World-format vocabulary beside it: the bytes, a few words, and characters."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_pth(folder / "tiny.pth", official_weights("6", rng, ids=262))
    entries = [bytes([byte]) for byte in range(256)] + [b" the", b"hello", "é".encode(), "中".encode(), b"\xe4\xb8"]
    lines = [
        f"{i} {entry!r} {len(entry)}\n" for i, entry in enumerate(sorted(entries, key=lambda e: (len(e), e)), start=1)
    ]
    (folder / "rwkv_vocab_tiny.txt").write_text("".join(lines))
    return folder / "tiny.pth"


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of a command: this process' backend, and a cache folder that the tests share, chosen by it.

    Native kernels, which take long to build, are those of this user; they are there, so no command says it builds them.
    """
    with contextlib.suppress(kept.NoLibraryError):
        library.library()
    ours = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    cache = tmp_path_factory.mktemp("cache")
    (cache / NAME).mkdir()
    (cache / NAME / "kernels").symlink_to(library.folder())
    return {**ours, "XDG_CACHE_HOME": str(cache)}


@pytest.fixture
def start(environment):
    """Start `python ARGUMENTS`; it does not outlive the test."""
    running = []

    def begin(*arguments, **variables):
        pipe = subprocess.PIPE
        command = [sys.executable, *map(str, arguments)]
        running.append(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={**environment, **variables})
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def command(start):
    """Run `bert4keras-rwkv ARGUMENTS` to its end. Returns (exit code, stdout, stderr as text)."""

    def run(*arguments, stdin=b"", **variables):
        process = start("-m", "bert4keras_rwkv", *arguments, **variables)
        out, said = process.communicate(stdin, timeout=120)
        return process.returncode, out, said.decode()

    return run
