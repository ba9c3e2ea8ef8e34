"""What a conversation looks like: the events of a `Conversation` on stdout and stderr."""

import importlib.util
import sys

from bert4keras_rwkv.cli.generate import Clock, StatusLine, write
from bert4keras_rwkv.commands.events import Begun, Ended, Piece, Refused, Said, Table, Thinking
from bert4keras_rwkv.commands.show import counted
from bert4keras_rwkv.untrusted import printable

SPEAKER, NOTICE, TROUBLE = "bold green", "dim", "yellow"


class Screen:
    """Shows events. Replies and tables go to stdout, all else to stderr, so that a pipe gets replies alone.

    talking: whether a person sits there, who wants to know who speaks, how fast, and what was done. status: how fast
    the last text came, a str; whoever shows it all the time (`has_status_line`) need not be told again. echo: whether
    a reply comes behind its message and the name of who speaks, as in texts, so that a pipe gets the conversation.
    """

    def __init__(self, echo=False):
        self._echo, self._before = echo, ""  # and what is still to be written before a text
        self.talking, self.has_status_line, self.status = False, False, ""
        self._line, self._clock = StatusLine(sys.stderr), Clock()
        self._begun, self._last = False, "\n"  # whether anything of a text was shown, and the character shown last
        self._rich = importlib.util.find_spec("rich") is not None

    def show(self, event):
        """Show one event."""
        SHOWN[type(event)](self, event)

    def reading(self, done, total):
        """So many tokens of so many have been read."""
        self._line.show(f"reading: {done} of {total} tokens")

    def _someone_begins(self, event):
        self._line.clear()
        self._clock, self._begun = Clock(), False
        self._before = f"{event.speaker} " if event.speaker and (self.talking or self._echo) else ""
        if self._echo and not self.talking:
            write(event.asked)

    def _thinks(self, event):
        self._clock.tick(event.tokens)
        self._line.show(f"thinking: {counted(event.tokens, 'token')}")

    def _piece(self, event):
        self._line.clear()
        self._clock.tick(event.tokens)
        self._name_speaker()
        self._begun, self._last = True, event.text[-1]
        write(event.text)

    def _ended(self, event):
        self._line.clear()
        self._name_speaker()
        write("" if self._begun and self._last == "\n" else "\n")
        if not self.talking:
            write("\n")  # between two replies
            return
        self.status = f"{self._clock.summary()}, {event.context} in context"
        if event.stopped:
            self._say(f"Stopped after {counted(event.tokens, 'token')}.", NOTICE)
        if not self.has_status_line:
            self._say(self.status, NOTICE)

    def notice(self, text):
        """Say something to whoever is there, also where that is no person."""
        self._say(text, NOTICE)

    def _name_speaker(self):
        """Write who speaks, once: a line that says how far a thought is would take it away."""
        if self._before:
            self._styled(self._before, SPEAKER)
        self._before = ""

    def _said(self, event):
        if self.talking:
            self.notice(event.text)

    def _refused(self, event):
        self._say(event.text, TROUBLE)

    def _table(self, event):
        if self.talking and self._rich:
            from rich.table import Table as RichTable
            from rich.text import Text

            table = RichTable(title=event.title, show_header=False, box=None, title_justify="left")
            for row in event.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            _console(sys.stdout).print(table)
            return
        for line in (event.title, *("  ".join(map(printable, row)) for row in event.rows)):
            write(f"{line}\n")

    def _say(self, text, style):
        self._line.clear()
        if self.talking and self._rich:
            from rich.text import Text

            _console(sys.stderr).print(Text(printable(text), style=style))
        else:
            print(printable(text), file=sys.stderr)

    def _styled(self, text, style):
        if self.talking and self._rich:
            from rich.text import Text

            _console(sys.stdout).print(Text(printable(text), style=style), end="")
        else:
            write(text)


SHOWN = {
    Begun: Screen._someone_begins,
    Thinking: Screen._thinks,
    Piece: Screen._piece,
    Ended: Screen._ended,
    Said: Screen._said,
    Refused: Screen._refused,
    Table: Screen._table,
}


def prompt_of(conversation):
    """What stands before a line: who speaks, and in which conversation, if there are several."""
    return printable(f"{conversation.speaker} ")


def _console(file):
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False)
