"""`generate` streams what `RWKV.stream` writes."""

import os
import re
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.chat import Chat
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
        (["--prompt", "a", "--save-state", "a.state", "--trials", "2"], 2, "Leave one out"),
        (["--prompt", "a", "--template", "nowhere"], 2, "A template is one of"),
        (["--prompt", "a", "--save-state", "a.pth"], 2, "hold no last inputs"),
        (["--prompt", "a", "--save-state", "nowhere/a.state"], 2, "there is no folder 'nowhere'"),
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


@pytest.mark.on("torch")
def test_trials_are_what_single_calls_with_their_seeds_write(model, command):
    """One prefill, N texts; each can be had again by the seed that it tells. So too with the rules of ChatRWKV."""
    given = ("generate", "--model", model, "--prompt", "hello", "--max-new-tokens", 12, "--newline-schedule")
    code, out, said = command(*given, "--trials", 3, "--seed", 7, "--no-repeat-marks")
    assert code == 0 and own_words(said).count("tokens/s") == 3, said
    rwkv = RWKV.from_preset(model)
    sampling = Sampling(top_p=0.85).paced(rwkv.tokenizer)
    texts = ["".join(rwkv.stream("hello", seed=7 + n, max_new_tokens=12, sampling=sampling)) for n in range(3)]
    assert out.decode() == "".join(f"--- {n + 1} of 3, seed {7 + n}\n{text}\n" for n, text in enumerate(texts))
    code, out, _ = command(*given, "--trials", 1)
    seed = re.match(r"--- 1 of 1, seed (\d+)\n", out.decode())
    assert seed and command(*given, "--seed", seed[1])[1].decode() == out.decode()[seed.end() :]


@pytest.mark.on("torch")
def test_a_prompt_as_a_message(model, command):
    """What `Chat` replies, with the space before it; `auto` is what a chat takes."""
    given = ("--model", model, "--prompt", "hello", "--max-new-tokens", 12, "--temperature", 0)
    chat = Chat(RWKV.from_preset(model), sampling="greedy", max_new_tokens=12, dialogue=False)
    code, out, said = command("generate", *given, "--template", "auto", "--echo")
    assert code == 0, said
    before, _, reply = out.decode().partition("Assistant:")
    assert (before, reply[:-1].lstrip()) == ("User: hello\n\n", chat.reply("hello"))


@pytest.mark.on("torch")
def test_a_saved_state_has_read_what_was_written(model, command, tmp_path):
    """`--state` goes on from it. 1e-4: read at once and token by token, in float32."""
    given = ("generate", "--model", model, "--temperature", 0)
    code, out, said = command(*given, "--prompt", "hello", "--max-new-tokens", 9, "--save-state", tmp_path / "a.state")
    assert code == 0, said
    rwkv = RWKV.from_preset(model)
    ids = rwkv.generate(rwkv.tokenizer.encode("hello"), max_new_tokens=9, sampling="greedy")
    assert out.decode() == rwkv.tokenizer.decode(ids[1:]) + "\n"
    _, want = rwkv.prefill([ids])
    state = rwkv.load_state(tmp_path / "a.state")
    for got, expected in ((state.wkv, want.wkv), (state.shift, want.shift)):
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (got, expected)), rtol=1e-4, atol=1e-4)
    code, out, _ = command(*given, "--prompt", " the", "--max-new-tokens", 5, "--state", tmp_path / "a.state")
    assert out.decode()[:-1] == rwkv.generate(" the", max_new_tokens=5, sampling="greedy", state=state)[4:]


@pytest.mark.on("torch")
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes")
def test_an_interactive_stop_keeps_what_was_shown(model, start, tmp_path):
    """Ctrl-C at some moment: code 0, how many tokens, and the state of exactly that text."""
    endless = ("--seed", 3, "--max-new-tokens", 1_000_000, "--mask-output", 0)
    given = (
        "--model",
        model,
        "--prompt",
        "hello",
        "--save-state",
        tmp_path / "a.state",
        "--interactive-stop",
        *endless,
    )
    running = start("-u", "-m", "bert4keras_rwkv", "generate", *given)
    shown = os.read(running.stdout.fileno(), 5)  # past the buffer, which `communicate` does not look into
    running.send_signal(signal.SIGINT)
    rest, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    count = int(re.search(r"Stopped after (\d+) tokens?\.\n", said.decode())[1])
    rwkv = RWKV.from_preset(model)
    pieces = rwkv.stream("hello", seed=3, max_new_tokens=count, sampling=Sampling(top_p=0.85, mask_output=[0]))
    assert "".join(pieces) == (shown + rest).decode()[:-1] and len(pieces.ids) == count
    _, want = rwkv.prefill([[*rwkv.tokenizer.encode("hello"), *pieces.ids]])
    state = rwkv.load_state(tmp_path / "a.state")
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (state.wkv, want.wkv)), rtol=1e-4, atol=1e-4)
