"""`serve` as a process: it says where it is, answers, and finishes what runs when it is told to stop."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.cli.arguments import parser
from bert4keras_rwkv.server.begin import Limits, Remembering


def address_of(process):
    """What it says first, once it listens."""
    for line in process.stderr:
        if line.startswith(b"Serving "):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return line.split(b" at ")[1].split(b". ")[0].decode()
    raise AssertionError("It ended without serving.")


@pytest.mark.on("jax")
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_it_answers_and_finishes_before_it_stops(start, model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret\n")
    keys.chmod(0o600)
    options = ["--model", model, "--port", "0", "--max-batch", "2", "--api-key-file", keys]
    process = start("-m", "bert4keras_rwkv", "serve", *options)
    with openai.OpenAI(base_url=address_of(process), api_key="secret", max_retries=0) as client:
        (name,) = (one.id for one in client.models.list())
        asked = {"model": name, "prompt": "hello", "max_tokens": 4000, "seed": 1, "temperature": 1}
        stream = client.completions.create(**asked, stream=True)
        pieces = iter(stream)
        text = next(pieces).choices[0].text
        process.send_signal(signal.SIGTERM)
        *rest, last = pieces
        assert last.choices[0].finish_reason in ("stop", "length")
        text += "".join(piece.choices[0].text for piece in [*rest, last])
        assert text
        assert process.wait(60) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


@pytest.mark.on("jax")
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_what_cannot_be_finished_in_time_is_told_so(start, model):
    """A stream ends with an error that the client knows, not with a connection that is cut."""
    options = ["--model", model, "--port", "0", "--max-batch", "1", "--max-tokens", 10_000_000, "--stop-within", 1]
    process = start("-m", "bert4keras_rwkv", "serve", *options)
    with openai.OpenAI(base_url=address_of(process), api_key="none", max_retries=0) as client:
        (name,) = (one.id for one in client.models.list())
        asked = {"model": name, "prompt": "hello", "max_tokens": 10_000_000, "temperature": 0}
        pieces = iter(client.completions.create(**asked, stream=True))
        next(pieces)
        process.send_signal(signal.SIGTERM)
        since = time.monotonic()
        with pytest.raises(openai.APIError, match="stopped"):
            list(pieces)
        assert process.wait(60) == 0
        assert 1 <= time.monotonic() - since < 20


@pytest.mark.on("jax")
def test_a_head_without_end_is_refused(start, model):
    """And a long one that ends is not."""
    process = start("-m", "bert4keras_rwkv", "serve", "--model", model, "--port", "0", "--max-batch", "1")
    host, port = address_of(process).removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 30_000 + b"\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(OSError):  # it hangs up
            for _ in range(200):
                line.sendall(b"a" * 10_000)
                time.sleep(0.001)
        with contextlib.suppress(ConnectionResetError):
            assert b" 400 " in line.recv(100)
    process.terminate()
    assert process.wait(60) == 0


@pytest.mark.backend_free
def test_a_port_in_use_is_one_line_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "--port", str(other.getsockname()[1])]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "--port" in told


@pytest.mark.backend_free
def test_without_the_extra_a_sentence_says_what_to_install():
    """And no other command needs it."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(('fastapi', 'uvicorn', 'pydantic')));"
    program = f"{hidden} from bert4keras_rwkv.cli import main; sys.exit(main(sys.argv[1:]))"

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)

    told = run("serve")
    assert (
        told.returncode == 1 and told.stderr.count("\n") == 1 and "pip install 'bert4keras_rwkv[serve]'" in told.stderr
    )
    assert run("info", "finch-jargon").returncode == 0


@pytest.mark.backend_free
def test_what_is_usual_is_the_same_from_the_command_line_and_from_python():
    given = parser().parse_args(["serve"])
    assert Limits(given.max_batch, given.queue, given.max_tokens, given.max_prompt, given.time_limit) == Limits()
    kept = (
        given.cache,
        given.cache_memory,
        given.cache_disk,
        given.cache_dtype,
        given.states or {},
        given.state_key_file,
    )
    assert Remembering(*kept) == Remembering()
