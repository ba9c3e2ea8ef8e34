"""The command line: `bert4keras-rwkv`, also `python -m bert4keras_rwkv`. Thin: each command is one file with `run`."""

import _thread
import contextlib
import importlib
import os
import sys

from bert4keras_rwkv.cli.arguments import UsageError, parser
from bert4keras_rwkv.untrusted import for_terminal, told

FAILED, MISUSED, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141
PRINTING = (
    "generate",
    "chat",
    "info",
    "evaluate",
    "kernels",
    "bench",
)  # what they find out goes to stdout and nowhere else
TOLD = (ValueError, OSError, ImportError, RuntimeError, MemoryError)  # whose words are for the user


def main(arguments=None):
    """Run a command. `arguments`: a list of str, None for those of the process. Returns the exit code.

    0 done, 1 failed (one line on stderr says why), 2 wrong usage (from argparse as SystemExit), 130 stopped by
    Ctrl-C, 141 if nobody reads what is written. Nothing but the standard library is loaded before the arguments are
    known to be right.
    """
    has_output = _open_streams()
    try:
        chosen = parser().parse_args(arguments)
    except SystemExit:
        _flush()
        raise
    try:
        if chosen.command in PRINTING and not has_output:
            raise OSError("stdout is closed, and the answer goes there.")
        with _interrupts_heard():
            importlib.import_module(f"bert4keras_rwkv.cli.{chosen.command}").run(chosen)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say("\nStopped.")
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return NOBODY_READS
    except Exception as error:
        if chosen.debug:
            raise
        _say(f"bert4keras-rwkv {chosen.command}: {_told(error)}")
        _flush()
        return MISUSED if isinstance(error, UsageError) else FAILED
    return 0


@contextlib.contextmanager
def _interrupts_heard():
    """Let a Ctrl-C stop the command that arrives where no exception leaves, as in JAX's callback of garbage."""
    before = sys.unraisablehook

    def hook(told):
        if issubclass(told.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(_thread.interrupt_main, ())  # from this thread it would be raised here, in vain
        else:
            before(told)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _told(error):
    """What an error says; one without words by its name."""
    if isinstance(error, TOLD):
        return told(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _open_streams():
    """Let the standard streams be there, and write what a terminal cannot show. Returns whether stdout was open.

    The number of a closed one would go to the next file that is opened, and what is printed into that file.
    """
    has_output = sys.stdout is not None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return has_output


def _say(text):
    """A line on stderr, if somebody reads it."""
    try:
        print(for_terminal(text), file=sys.stderr)
    except OSError:
        _forget_output()


def _flush():
    """Write what was printed now: at its end the interpreter would tell of an error with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()


def _forget_output():
    """Let the interpreter end quietly though nothing more can be written."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
