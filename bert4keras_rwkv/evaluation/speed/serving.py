"""A measured program as a process: it answers one command a line with a line of JSON. Only the standard library.

A subject is an object whose methods are the commands: `prefill(512)` returns the seconds it took, or a dict.
"""

import contextlib
import json
import os
import sys
import time


def serve(make):
    """Make the subject with `make(options)`, a dict from the command line, and answer until the input ends.

    The first answer is its `facts`. An exception is an answer, too, and a later command may follow it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(function, *arguments):
        try:
            found = function(*arguments)
        except Exception as error:
            found = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        answers.write(json.dumps(found if isinstance(found, dict) else {"seconds": found}) + "\n")
        answers.flush()

    subject = None

    def begin():
        nonlocal subject
        options = json.loads(sys.argv[1])
        _stay_on(options["cores"])
        subject = make(options)
        return subject.facts

    def asked(name, *arguments):
        return peak_bytes() if name == "peak" else getattr(subject, name)(*arguments)

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # the one who asks says so
        answer(begin)
        for line in sys.stdin:
            name, *arguments = line.split()
            answer(asked, name, *map(int, arguments))


def _stay_on(cores):
    """Let this process run on some cores only; None: on all. Only Linux can."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def peak_bytes():
    """{"bytes": the most memory this process has held so far, None where the system does not say it}."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return {"bytes": 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])}
    with contextlib.suppress(ImportError):
        import resource

        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    return {"bytes": None}


def prompt_ids(count, vocabulary):
    """Ids of a made-up prompt, none of them 0."""
    return [1 + i * 7919 % (vocabulary - 1) for i in range(count)]


class Peer:
    """What programs of others share: the prompt, the likeliest token, the clock.

    A subclass has `facts`, `open()`, which reads the model, and `read(ids, state) -> (logits of the last token as a
    NumPy vector, state)`, which has finished when it returns. state None: a text begins.
    """

    def __init__(self, options):
        self.options, self.facts = options, {}

    def load(self):
        started = time.perf_counter()
        self.open()
        loaded = time.perf_counter()
        self.prefill(8)
        self.decode(1)
        return {"load_seconds": loaded - started, "first_seconds": time.perf_counter() - loaded}

    def prefill(self, count):
        ids = prompt_ids(count, self.options["vocabulary"])
        started = time.perf_counter()
        self.logits, self.state = self.read(ids, None)
        return time.perf_counter() - started

    def decode(self, count):
        started = time.perf_counter()
        for _ in range(count):
            self.logits, self.state = self.read([int(self.logits.argmax())], self.state)
        return time.perf_counter() - started
