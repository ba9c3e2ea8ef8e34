"""The law of every reader, over random files: `python -m tests.weights.fuzz --samples 1000 [--kind zip] [--seed 1]`.

A file gives a result, or a ValueError or OSError with a message of bounded length without control characters: in
bounded time and memory, opening no file but those beside it, writing and running nothing. A breach ends the program
with a traceback, a crash by its signal; both after the line that says how to see it again: a seed and the number of a
sample make one file.
"""

import argparse
import faulthandler
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np

from tests.weights.fuzz.kinds import KINDS

SECONDS, WAITING = 5, 60  # of computing, and of anything, for one reader and one file; others may keep the machine busy
MEMORY = 1 << 29  # bytes of address space beyond what is loaded already
FILES = 64
LARGEST = 64 << 20  # bytes of a file that may be written
LONGEST = 2000  # characters of a message
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "exec",
    "ctypes.dlopen",
)


class Breach(Exception):
    """What the law forbids."""


class Watch:
    """An audit hook: while `folder` is set, files outside it may not be opened, but for those of Python itself."""

    def __init__(self):
        self.folder = None
        self.own = tuple({str(Path(path).resolve()) for path in sys.path if path} | {sys.prefix, sys.base_prefix})
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode = os.path.abspath(os.fsdecode(arguments[0])), arguments[1] or "r"
            inside = path.startswith(self.folder)
            if (not inside and not path.startswith(self.own)) or set(str(mode)) & set("wax+"):
                self.folder = None
                raise Breach(f"opens {path!r} {mode!r}")
        elif event in FORBIDDEN and not _imports():
            self.folder = None
            raise Breach(f"{event} {arguments!r:.200}")


def _imports():
    """Whether a module is being imported: its body is executed."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def limit():
    """Bound what this process may take."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, size + MEMORY),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_FSIZE, LARGEST),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def check(kind, rng, folder, watch):
    """One sample. Returns how many readers gave a result."""
    os.mkfifo(folder / "pipe")
    path = kind.make(rng, folder, str(folder / "pipe"))
    found, before = 0, sorted(folder.iterdir())
    for read in kind.read:
        watch.folder = str(folder)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(WAITING)
        faulthandler.dump_traceback_later(2 * WAITING, exit=True)  # where Python does not come to run
        try:
            result = read(path)
            found += 1
        except (ValueError, OSError) as error:
            result = None
            judge(str(error))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
            watch.folder = None
        if (
            kind.own
            and isinstance(result, dict)
            and not set().union(*map(bytes_of, result.values())) <= set(path.read_bytes())
        ):
            raise Breach("a byte that is not in the file")
    if sorted(folder.iterdir()) != before:
        raise Breach(f"writes {sorted(set(folder.iterdir()) - set(before))}")
    return found


def bytes_of(array):
    return set(np.ascontiguousarray(array).tobytes())


def judge(message):
    if not message or len(message) > LONGEST:
        raise Breach(f"a message of {len(message)} characters")
    if not message.replace("\n", " ").isprintable():
        raise Breach(f"control characters in {message!r}")


def run(name, number, seed, watch):
    """One sample of a kind. Returns how many readers gave a result."""
    print(f"--kind {name} --seed {seed} --only {number} ", end="\r", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return check(KINDS[name], random.Random(f"{name} {seed} {number}"), Path(folder).resolve(), watch)


def told(name, number, seed, watch):
    """The same; a breach is printed, and gives None."""
    try:
        return run(name, number, seed, watch)
    except Exception:
        print(f"\n{traceback.format_exc(-3)}")
        return None


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.weights.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="kinds of files; all")
    parser.add_argument("--samples", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", type=int, help="the number of one sample")
    parser.add_argument("--all", action="store_true", help="print each breach and go on")
    chosen = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, late)
    kinds, watch = chosen.kind or KINDS, Watch()
    for name in kinds:  # what is loaded late is loaded now
        run(name, 0, "first", watch)
    limit()
    breaches = 0
    for name in kinds:
        numbers = range(chosen.samples) if chosen.only is None else [chosen.only]
        found = [(told if chosen.all else run)(name, number, chosen.seed, watch) for number in numbers]
        breaches += found.count(None)
        print(f"{name}: {len(found)} samples, {len(found) - found.count(0)} of them read by some reader")
    if breaches:
        sys.exit(f"{breaches} samples break the law.")


def late(*_):
    raise Breach(f"computes more than {SECONDS} seconds or waits")


if __name__ == "__main__":
    main()
