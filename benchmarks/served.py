"""A server as a process of its own: started, asked, stopped, killed, started again."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .http_load import Address, ask
from .rounds import TICK


class Served:
    """A server process, which ends with a `with` block. command: what starts it, with "{port}" for the port that it
    listens on. It is ready when it answers `path`.
    """

    def __init__(self, command, path="/v1/models", environment=None, patience=600.0):
        self._command, self._path, self._patience = [str(part) for part in command], path, patience
        self._environment, self._past = {**os.environ, **(environment or {})}, 0.0
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def start(self):
        """Start it, and wait until it answers. Returns the seconds that it took."""
        self.address, began = Address("127.0.0.1", free_port()), time.perf_counter()
        command = [part.replace("{port}", str(self.address.port)) for part in self._command]
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() - began > self._patience:
                self.kill()
                raise RuntimeError(f"It does not serve: {' '.join(command)}\n{self.messages()[-2000:]}")
            time.sleep(0.05)
        return time.perf_counter() - began

    def _answers(self):
        with contextlib.suppress(ConnectionError):
            return asyncio.run(ask(self.address, self._path)).status == 200
        return False

    def messages(self):
        """What it has printed."""
        return self._log.read_text("utf-8", "replace")

    def stop(self, limit=60.0):
        """Ask it to end, and wait until it has."""
        self._past = self.processor_seconds()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(limit)

    def kill(self):
        """End it as a power cut does."""
        if self.process.poll() is None:
            self._past = self.processor_seconds()
        self.process.kill()
        self.process.wait()

    def restart(self):
        """Stop it and start it again. Returns the seconds that starting took."""
        self.stop()
        return self.start()

    def processor_seconds(self):
        """Processor time of all its lives."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return self._past + (int(fields[11]) + int(fields[12])) / TICK

    def resident_megabytes(self):
        """Memory that it holds, in units of 1e6 bytes."""
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_port():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ours(model, *options):
    """The command of this package's server."""
    return [sys.executable, "-m", "bert4keras_rwkv", "serve", "--model", model, "--port", "{port}", *options]
