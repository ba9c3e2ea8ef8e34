"""`bench`: how fast a model runs here, with each strategy and in other programs.

Run as a program, by `python -m`, this file is one of the processes that are measured, started as `generate` starts.
"""

import json
import signal
import sys
import threading
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_file, check_file
from bert4keras_rwkv.cli.arguments import UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.cli.generate import StatusLine
from bert4keras_rwkv.evaluation.speed import Settings, measure_speed
from bert4keras_rwkv.evaluation.speed.ours import Ours
from bert4keras_rwkv.evaluation.speed.plot import check_plot, plot
from bert4keras_rwkv.evaluation.speed.serving import serve
from bert4keras_rwkv.keras_loader import VARIABLE, check_backend
from bert4keras_rwkv.weights.checkpoint import named

STDOUT = "-"


def run(arguments):
    """Measure, then print the table and write what else is asked for. Raises RuntimeError if nothing was measured."""
    named(arguments.model)
    _end_well()
    settings = _settings(arguments)
    _check_targets(arguments)
    if arguments.engine:
        check_backend(arguments.engine, "as --backend says", "--backend")
    with StatusLine(sys.stderr) as line:
        report = measure_speed(
            arguments.model,
            arguments.strategy or ["auto"],
            arguments.compare,
            settings,
            module="bert4keras_rwkv.cli.bench",
            environment={VARIABLE: arguments.engine} if arguments.engine else None,
            say=line.show,
            shown=arguments.debug,
        )
    text = json.dumps(report.to_dict(), indent=2)
    print(text if arguments.json == STDOUT else report)
    if arguments.json not in (None, STDOUT):
        with atomic_file(arguments.json) as unfinished:
            Path(unfinished).write_text(text + "\n", "utf-8")
    if not report.measured:
        raise RuntimeError(f"nothing was measured: {report.rows[0].why_not or 'no program gave an answer.'}")
    if arguments.plot is not None:
        plot(report, arguments.plot)


def _end_well():
    """Let who ends the process from outside end it as an exception does: no program goes on, no file stays."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))


def _settings(arguments):
    """The `Settings` of the options."""
    texts = tuple(arguments.texts)
    return Settings(arguments.prompt, arguments.decode, texts, arguments.rounds, arguments.threads)


def _check_targets(arguments):
    """Raise now what could not be written later."""
    if arguments.json not in (None, STDOUT):
        check_file(arguments.json)
    if arguments.plot is not None:
        try:
            check_plot(arguments.plot)
        except ValueError as error:
            raise UsageError(f"--plot: {error}") from error
        check_file(arguments.plot)


def _measured(options):
    """This package as a measured program."""
    choose_engine()
    return Ours(options)


if __name__ == "__main__":
    serve(_measured)
