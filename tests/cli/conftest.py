"""The command line as a subprocess, and a tiny model for it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bert4keras_rwkv.weights import write_pth


@pytest.fixture
def model(tmp_path, rng):
    """A random RWKV-6 of 262 ids with a World-format vocabulary beside it: the bytes, a few words, and characters."""
    C, F, V, D, Dd = 16, 32, 262, 4, 4
    arrays = {"emb.weight": (V, C)}

    def norm(name):
        return {f"{name}.weight": (C,), f"{name}.bias": (C,)}

    for i in range(2):
        arrays |= norm(f"blocks.{i}.ln1") | norm(f"blocks.{i}.ln2") | (norm("blocks.0.ln0") if i == 0 else {})
        time = {f"time_maa_{m}": (1, 1, C) for m in "xwkvrg"} | {"time_maa_w1": (C, 5 * D), "time_maa_w2": (5, D, C)}
        time |= {"time_decay": (1, 1, C), "time_decay_w1": (C, Dd), "time_decay_w2": (Dd, C), "time_faaaa": (2, 8)}
        time |= {f"{name}.weight": (C, C) for name in ("receptance", "key", "value", "output", "gate")}
        arrays |= {f"blocks.{i}.att.{name}": shape for name, shape in time.items()} | norm(f"blocks.{i}.att.ln_x")
        channel = {"time_maa_k": (1, 1, C), "time_maa_r": (1, 1, C), "key.weight": (F, C), "receptance.weight": (C, C)}
        arrays |= {f"blocks.{i}.ffn.{name}": shape for name, shape in (channel | {"value.weight": (C, F)}).items()}
    arrays |= norm("ln_out") | {"head.weight": (V, C)}
    folder = tmp_path / "model"
    folder.mkdir()
    write_pth(folder / "tiny.pth", {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()})
    entries = [bytes([byte]) for byte in range(256)] + [b" the", b"hello", "é".encode(), "中".encode(), b"\xe4\xb8"]
    lines = [
        f"{i} {entry!r} {len(entry)}\n" for i, entry in enumerate(sorted(entries, key=lambda e: (len(e), e)), start=1)
    ]
    (folder / "rwkv_vocab_tiny.txt").write_text("".join(lines))
    return folder / "tiny.pth"


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of a command: this process' backend, and a cache folder that the tests share."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


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
