"""What a conversation looks like: the events of a `Conversation` on stdout and stderr."""

import importlib.util
import sys

from bert4keras_rwkv.cli.generate import Clock, StatusLine
from bert4keras_rwkv.conversation.events import Ended, Piece, Reading, Refused, Said, Table
from bert4keras_rwkv.untrusted import for_terminal, printable

STYLES = {Said: "dim", Refused: "yellow", Ended: "dim"}


class Screen:
    """Shows events. Answers and tables go to stdout, all else to stderr, so that a pipe gets answers alone.

    talking: whether a person sits there, who is told how long answers were and how fast they came. status: the last of
    that, a str.
    """

    def __init__(self, talking):
        self.talking, self.status = talking, ""
        self._line = StatusLine(sys.stderr)
        self._clock, self._mark, self._last = None, "", "\n"
        self._rich = talking and importlib.util.find_spec("rich") is not None

    def begin(self, mark):
        """A line was taken; what is written now stands behind `mark`."""
        self._clock, self._mark, self._last = Clock(), mark, "\n"

    def show(self, event):
        """Show one event."""
        if isinstance(event, Piece):
            self._piece(event)
            return
        self._line.clear()
        if isinstance(event, Reading):
            self._line.show(f"reading: {event.done} of {event.total} tokens")
        elif isinstance(event, Ended):
            self._ended(event)
        elif isinstance(event, Table):
            self._table(event)
        elif not isinstance(event, Said) or self.talking:
            self._say(event.text, STYLES[type(event)])

    def _piece(self, event):
        self._line.clear()
        text = event.text
        if self._clock.tokens == 0:
            text = text.lstrip(" \n")
            self._mark, mark = "", self._mark
            if self.talking:
                self._print(f"{printable(mark)} ", "bold green")
        self._clock.tick(event.tokens)
        if text:
            _write(for_terminal(text) if sys.stdout.isatty() else text)
            self._last = text[-1]

    def _ended(self, event):
        _write("" if self._last == "\n" else "\n")
        self._last = "\n"
        if not self.talking:
            _write("\n")
            return
        stopped = "stopped, " if event.stopped else ""
        self.status = f"{stopped}{self._clock.summary()}, {event.context} in context"
        self._say(self.status, STYLES[Ended])

    def _table(self, event):
        if self._rich:
            from rich.table import Table as RichTable
            from rich.text import Text

            table = RichTable(title=event.title, show_header=False, box=None, title_justify="left")
            for row in event.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            self._console(sys.stdout).print(table)
            return
        lines = [event.title, *("  ".join(map(printable, row)) for row in event.rows)]
        _write("".join(f"{line}\n" for line in lines))

    def _say(self, text, style):
        if self._rich:
            from rich.text import Text

            self._console(sys.stderr).print(Text(printable(text), style=style))
        else:
            print(printable(text), file=sys.stderr)

    def _print(self, text, style):
        if self._rich:
            from rich.text import Text

            self._console(sys.stdout).print(Text(text, style=style), end="")
        else:
            _write(text)

    @staticmethod
    def _console(file):
        from rich.console import Console

        return Console(file=file, highlight=False, markup=False)


def _write(text):
    sys.stdout.write(text)
    sys.stdout.flush()
