"""The server as an application of Ray Serve, on a cluster of this machine alone."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.on("jax")]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys

import ray
from ray import serve

from deploy.ray_serve import app

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
files = {"api_key_file": sys.argv[2], "state_key_file": sys.argv[2] + ".state"}
serve.run(app({"model": "finch-jargon", "replicas": "2", "cpus": "0.5", "max_batch": "2", **files}))
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def http(tmp_path):
    """Asks two replicas."""
    pytest.importorskip("ray.serve", reason="ray is not installed: pip install '.[ray]'")
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(Path.home() / ".cache"), "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), str(keys)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **home},
        cwd=ROOT,
    )
    try:
        while (line := program.stdout.readline()) != "ready\n":
            assert line, "It ended without serving."
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers=headers, timeout=60) as http:
            yield http
        program.communicate("", timeout=120)
    finally:
        program.kill()
        program.communicate()


def test_two_replicas_answer_alike_and_stream(http):
    """Texts depend on the seed, not on who was asked, and what both have drawn is what was answered."""
    asked = {"prompt": "A hacker is", "max_tokens": 24, "seed": 1}
    whole = [http.post("/completions", json=asked).json() for _ in range(12)]
    assert len({answer["choices"][0]["text"] for answer in whole}) == 1
    assert whole[0]["choices"][0]["text"]
    usage_wanted = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = {"prompt": "1 2 3", "max_tokens": 2000, "temperature": 0, **usage_wanted}
    with http.stream("POST", "/completions", json=streamed) as stream:
        lines = [(time.monotonic(), line) for line in stream.iter_lines() if line]
    *pieces, (last, done) = lines
    assert done == "data: [DONE]" and last - pieces[0][0] > 0.1  # not all at once, at the end
    usages = [answer["usage"] for answer in whole] + [json.loads(pieces[-1][1].removeprefix("data: "))["usage"]]
    told = "".join(http.get("/metrics").text for _ in range(40))
    drawn = {line for line in told.splitlines() if line.startswith("rwkv_generated_tokens_total ")}
    assert len(drawn) == 2
    assert sum(float(line.split()[1]) for line in drawn) == sum(usage["completion_tokens"] for usage in usages)
    state = {}
    for _ in range(8):  # wherever it comes from
        turn = {"messages": [{"role": "user", "content": "And then?"}], "max_tokens": 9, "return_state": True, **state}
        answer = http.post("/chat/completions", json=turn)
        assert answer.status_code == 200
        state = {"state": answer.json()["state"]}
    assert http.post("/completions", json=asked, headers={"Authorization": "Bearer no"}).status_code == 401
