"""The command line: `bert4keras-rwkv`, also `python -m bert4keras_rwkv`. Thin: each command is one file with `run`."""

import importlib
import sys

from bert4keras_rwkv.cli.arguments import UsageError, parser

FAILED, MISUSED, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141


def main(arguments=None):
    """Run a command. `arguments`: a list of str, None for those of the process. Returns the exit code.

    0 done, 1 failed (one line on stderr says why), 2 wrong usage (from argparse as SystemExit), 130 stopped by
    Ctrl-C. Nothing but the standard library is loaded before the arguments are known to be right.
    """
    chosen = parser().parse_args(arguments)
    try:
        importlib.import_module(f"bert4keras_rwkv.cli.{chosen.command}").run(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return NOBODY_READS
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if chosen.debug:
            raise
        print(f"bert4keras-rwkv {chosen.command}: {_told(error)}", file=sys.stderr)
        return MISUSED if isinstance(error, UsageError) else FAILED
    return 0


def _told(error):
    """What an error says; one without words by its name."""
    return str(error) or type(error).__name__


def _forget_output():
    """Let the interpreter end quietly though the reader of stdout has gone."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
