"""A measured program in a process of its own: it says when it is ready, then answers one command a line with JSON.

A subject is an object whose methods are the commands: `prefill(n)` returns the seconds it took, or a dict.
"""

import json
import os
import sys
import time

STARTED = time.perf_counter()


def peak_megabytes():
    """The most memory this process has held so far, in units of 1e6 bytes (Linux)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def serve(make):
    """Build the subject with `make()` and answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def say(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def result(function, *arguments):
        """What it returns; an exception is an answer, too, and the last."""
        try:
            return function(*arguments)
        except Exception as error:
            say(failed=f"{type(error).__name__}: {error}".splitlines()[0][:200])
            raise

    subject = result(make)
    say(ready=True, **getattr(subject, "facts", {}))
    for line in sys.stdin:
        name, *arguments = line.split()
        if name == "memory":
            say(peak_mb=peak_megabytes())
            continue
        answer = result(getattr(subject, name), *map(int, arguments))
        say(**(answer if isinstance(answer, dict) else {"seconds": answer}))


class Language:
    """What the language model workers share: a made-up prompt, greedy decoding, the clock.

    A subclass has `read(ids, state) -> (logits of the last token as a NumPy vector, state)`; `read` must have finished
    when it returns.
    """

    def __init__(self, **facts):
        self.facts = {**facts, "load_peak_mb": peak_megabytes()}
        started = time.perf_counter()
        self.prefill(16)
        self.decode(4)
        self.facts["first_token_s"] = time.perf_counter() - started
        self.facts["start_s"] = time.perf_counter() - STARTED

    def prefill(self, n):
        ids = [(i * 7919) % 65000 + 1 for i in range(n)]
        started = time.perf_counter()
        self.logits, self.state = self.read(ids, None)
        return time.perf_counter() - started

    def decode(self, n):
        started = time.perf_counter()
        for _ in range(n):
            self.logits, self.state = self.read([int(self.logits.argmax())], self.state)
        return time.perf_counter() - started

    def check(self, n):
        """Some logits after a prompt of n: the harness compares them between workers."""
        self.prefill(n)
        return {"logits": [float(x) for x in self.logits[::1024]]}
