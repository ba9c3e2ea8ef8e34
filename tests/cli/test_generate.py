"""`generate` streams what `RWKV.stream` writes."""

import re
import signal
import sys
from pathlib import Path

import keras
import pytest

from bert4keras_rwkv.cli import backend, main
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models import RWKV


def own_words(said):
    """stderr without what TensorFlow says on being loaded, whatever its log level."""
    return "".join(line for line in said.splitlines(True) if not re.match(r"WARNING: All log|[IW]\d{4} ", line))


def test_writes_what_the_model_writes(model, command, environment):
    """The same seed, the same text, then the count and rate of tokens on stderr and nothing else.

    `--backend` is set before Keras is loaded, whatever the environment says. On JAX what was compiled is kept in the
    user's cache folder.
    """
    options = ("--max-length", 20, "--seed", 7, "--backend", keras.config.backend())
    code, out, said = command("generate", "--model", model, "--prompt", "hello", *options, KERAS_BACKEND="nonsense")
    assert code == 0, said
    expected = "".join(RWKV.from_preset(model).stream("hello", 20, sampling=Sampling(top_p=0.85), seed=7))
    assert out.decode("utf-8") == expected + "\n"
    assert re.fullmatch(r"\d+ tokens, \d+\.\d tokens/s\n", own_words(said))
    assert 1 <= int(own_words(said).split()[0]) <= 19
    kept = Path(environment["XDG_CACHE_HOME"], "bert4keras-rwkv", "jax")
    assert kept.is_dir() == (keras.config.backend() == "jax") and (not kept.is_dir() or list(kept.iterdir()))


@pytest.mark.on("torch")
def test_prompt_from_stdin_echo_and_stop(model, command):
    """Greedy text, cut before a piece of itself; the prompt is taken as it is, in UTF-8."""
    text = "".join(RWKV.from_preset(model).stream("é\n中", 24, sampling="greedy"))
    stop = text[len(text) // 2 :][:3]
    options = ("--max-length", 24, "--temperature", 0, "--echo", "--stop", "never there", "--stop", stop)
    code, out, said = command("generate", "--model", model, "--prompt", "-", *options, stdin="é\n中".encode())
    assert code == 0, said
    assert out.decode("utf-8") == "é\n中" + text[: text.index(stop)] + "\n"
    code, _, said = command("generate", "--model", model, "--prompt", "-", stdin=b"\xff\xfe")
    assert code == 2 and "what stdin holds is no text in UTF-8" in str(said)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--prompt", ""], 2, "The prompt is empty"),
        (["--prompt", "a", "--max-penalty-range", "5", "2"], 2, "max_penalty_range"),
        (["--prompt", "hello hello", "--max-length", "2"], 1, "`max_length`, prompt and answer together, is 2"),
        (["--prompt", "a", "--tokenizer", "nowhere.txt"], 1, "nowhere.txt"),
        (["--prompt", "a", "--model", "nowhere"], 1, "nowhere"),
        (["--prompt", "a", "--kernel", "magic"], 1, "magic"),
        (["--prompt", "a", "--strategy", "cuda:99 fp16"], 1, "There is no device 'cuda:99' here"),
    ],
)
def test_errors_are_one_line(model, capsys, monkeypatch, arguments, code, message):
    monkeypatch.setattr(backend, "keep_compiled_programs", lambda: None)  # this process' JAX stays as it is
    assert main(["generate", "--model", str(model), *arguments]) == code
    out, said = capsys.readouterr()
    assert out == "" and said.startswith("bert4keras-rwkv generate: ") and said.count("\n") == 1 and message in said


def test_an_impossible_kernel_of_the_environment_is_one_line(model, capsys, monkeypatch):
    monkeypatch.setattr(backend, "keep_compiled_programs", lambda: None)
    monkeypatch.setenv("OPS_KERNEL", "7")
    assert main(["generate", "--model", str(model), "--prompt", "a"]) == 1
    said = "OPS_KERNEL is 0 (native kernels where there are some) or 1 (pure ops). Received: '7'."
    assert capsys.readouterr().err == f"bert4keras-rwkv generate: {said}\n"


@pytest.mark.on("torch")
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes")
@pytest.mark.parametrize("end", ["ctrl-c", "reader"])
def test_an_early_end_is_quiet(model, start, end):
    """Ctrl-C while it writes: what was written stays, 130, no traceback. `| head -c 1`: 141 and silence."""
    endless = ("--echo", "--max-length", 1_000_000, "--mask-output", 0)
    running = start("-u", "-m", "bert4keras_rwkv", "generate", "--model", model, "--prompt", "a", *endless)
    assert running.stdout.read(1) == b"a"
    if end == "ctrl-c":
        running.send_signal(signal.SIGINT)
        assert own_words(running.communicate(timeout=60)[1].decode()) == "\nStopped.\n"
        assert running.returncode == 130
    else:
        running.stdout.close()
        assert own_words(running.stderr.read().decode()) == ""
        assert running.wait(timeout=60) == 141
