"""Two servers behind nginx, set up as in deploy/: whoever is asked, it is as if there were one."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.on("jax"),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
ENDLESS = {"prompt": "1 2 3", "max_tokens": 1_000_000, "temperature": 0}  # zeros, as long as they are wanted


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def until(true, seconds=120):
    """Wait for something to become true. Returns whether it did."""
    end = time.monotonic() + seconds
    while not (answer := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer


def answers(url):
    """Whether somebody there is ready."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready").status_code == 200
    return False


class Replicas:
    """`serve` twice, and nginx before them. urls: of the two. proxy: its own. stack: ends them."""

    def __init__(self, folder, stack):
        ports = [free_port() for _ in range(3)]
        *self.urls, self.proxy = [f"http://127.0.0.1:{port}" for port in ports]
        self._folder, self._stack, self.servers = folder, stack, []
        for port, url in zip(ports, self.urls, strict=False):  # the second finds what the first has compiled
            self.servers.append(self._serve(port))
            assert until(lambda url=url: answers(url)), (folder / "log").read_text("utf-8", "replace")
        self._start(self._nginx_command(ports))
        assert until(lambda: answers(self.proxy)), (folder / "log").read_text("utf-8", "replace")

    def _start(self, command):
        with open(self._folder / "log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process

    def _serve(self, port):
        options = f"--model finch-jargon --port {port} --max-batch 1 --queue 1 --max-tokens 1000000"
        key = ["--state-key-file", self._folder / "key"]
        return self._start([sys.executable, "-m", "bert4keras_rwkv", "serve", *options.split(), *key])

    def _nginx_command(self, ports):
        config = (ROOT / "deploy" / "nginx.conf").read_text("utf-8").replace("/tmp/", f"{self._folder}/")
        names = ("replica-1:8000", "replica-2:8000", "listen 8080")
        places = (*(f"127.0.0.1:{port}" for port in ports[:2]), f"listen 127.0.0.1:{ports[2]}")
        for name, place in zip(names, places, strict=True):
            assert name in config
            config = config.replace(name, place)
        (self._folder / "nginx.conf").write_text(config)
        mine = "user root;" if os.geteuid() == 0 else ""
        return [NGINX, "-p", self._folder, "-c", "nginx.conf", "-g", f"daemon off; {mine}"]

    def running(self):
        """How many answers each replica writes; None for one that is gone."""
        return [self._running(url) for url in self.urls]

    def _running(self, url):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health").json()["running"]

    def idle(self):
        """Wait until nobody writes anything. Returns whether that came."""
        return until(lambda: not any(self.running()), 30)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    with contextlib.ExitStack() as running:
        yield Replicas(tmp_path_factory.mktemp("replicas"), running)


@pytest.fixture
def http(replicas):
    """Asks whoever nginx chooses."""
    with httpx.Client(base_url=f"{replicas.proxy}/v1", timeout=120) as http:
        yield http


def test_a_conversation_moves_between_them_with_its_state(replicas, http):
    """Turn by turn, only what is new is sent: the replies are those that one server gives to the whole conversation."""
    before = [requests(url) for url in replicas.urls]
    history, state = [], {}
    for text in ("Hello!", "What is a hacker?", "And what is a kluge?", "Thank you.", "What is a bug?"):
        new, options = [{"role": "user", "content": text}], {"temperature": 0, "max_tokens": 40}
        moved = http.post("/chat/completions", json={"messages": new, "return_state": True, **options, **state}).json()
        state, reply = {"state": moved["state"]}, moved["choices"][0]["message"]
        history += new
        whole = httpx.post(f"{replicas.urls[0]}/chat/completions", json={"messages": history, **options}, timeout=60)
        assert reply["content"] == whole.json()["choices"][0]["message"]["content"]
        assert moved["usage"]["prompt_tokens"] < whole.json()["usage"]["prompt_tokens"] or len(history) == 1
        history.append(reply)
    first, other = (requests(url) - count for url, count in zip(replicas.urls, before, strict=True))
    assert first > 5 and other > 0 and first + other == 2 * 5  # whole ones, and those through nginx
    forged = {**state["state"], "signature": "0" * len(state["state"]["signature"])}
    refused = http.post("/chat/completions", json={"messages": new, "state": forged})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "state_signature"


def requests(url):
    """How many chats one of them has answered."""
    told = re.findall(
        r'rwkv_requests_total{endpoint="/chat/completions",status="200"} (\S+)', httpx.get(f"{url}/metrics").text
    )
    return sum(map(float, told))


def test_a_stream_arrives_while_it_is_written_and_ends_with_whoever_reads_it(replicas, http):
    """Two streams go to two replicas, for each has the fewest connections in its turn."""
    with contextlib.ExitStack() as open_streams:
        for count in (1, 2):
            stream = http.stream("POST", "/completions", json={**ENDLESS, "stream": True})
            lines = open_streams.enter_context(stream).iter_lines()
            open_streams.callback(lines.close)
            assert next(lines).startswith("data: ")
            assert sorted(replicas.running()) == [count - 1, 1]
    assert replicas.idle()


def test_who_is_full_passes_a_request_on_and_only_both_together_refuse(replicas, http):
    """Two answers each."""
    with contextlib.ExitStack() as open_streams:
        for _ in range(4):
            stream = http.stream("POST", "/completions", json={**ENDLESS, "stream": True})
            assert open_streams.enter_context(stream).status_code == 200
        refused = http.post("/completions", json=ENDLESS)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
    assert replicas.idle()


@pytest.mark.parametrize("guide", ["docs/serving.md", "docs/zh/serving.md"])
def test_metrics_are_those_of_the_guide(replicas, http, guide):
    """Each replica is asked for its own: nginx does not say which one has answered."""
    assert http.get("/metrics").status_code == 404
    told = httpx.get(f"{replicas.urls[1]}/metrics").text
    shown = set(re.findall(r"^# TYPE (rwkv_\w+) ", told, re.M)) - set(re.findall(r"rwkv_\w+_created", told))
    assert shown == set(re.findall(r"`(rwkv_\w+)", (ROOT / guide).read_text("utf-8")))


def test_when_a_replica_dies_its_request_is_answered_by_the_other(replicas, http):
    """Last of all, for it does not come back. Whoever asks notices nothing but the time."""
    told, asked = [], {**ENDLESS, "max_tokens": 3000}
    asking = threading.Thread(target=lambda: told.append(http.post("/completions", json=asked)))
    asking.start()
    assert until(lambda: any(replicas.running()), 30)
    dead = replicas.running().index(1)
    replicas.servers[dead].kill()
    asking.join()
    assert told[0].status_code == 200 and told[0].json()["usage"]["completion_tokens"] == 3000
    for _ in range(6):
        assert http.post("/completions", json={**ENDLESS, "max_tokens": 5}).status_code == 200
