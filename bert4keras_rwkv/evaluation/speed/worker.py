"""The other end of `serving`: a process that is asked, and ended whatever happens."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]  # the folder in which the package lies
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(RuntimeError):
    """A program gives no answer, or says why it cannot."""


class Worker:
    """The process of a program. `facts` is its first answer, `start_seconds` what that took. Close it.

    module: what `python -m` runs. options: a dict for it. threads: how many it may use, None: as many as it takes by
    itself. environment: variables for it. shown: whether what it prints is seen.
    """

    def __init__(self, module, options, threads=None, environment=None, shown=False):
        started = time.perf_counter()
        variables = {} if threads is None else dict.fromkeys(THREADS, str(threads))
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables |= {"PYTHONPATH": os.pathsep.join(paths), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.DEVNULL,
            text=True,
            env={**os.environ, **variables, **(environment or {})},
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started

    def ask(self, command):
        """The answer, a dict. Raises WorkerError."""
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def close(self):
        """End the process whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not read goes nowhere
                pipe.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def _ended(self):
        code = self._process.wait()
        how = f"by signal {-code}" + " (where memory runs out it is 9)" * (code == -9) if code < 0 else f"with {code}"
        return WorkerError(f"its process ended {how}")
