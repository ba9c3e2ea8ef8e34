"""Where the lines of a conversation come from: a pipe, a terminal, or one with completion, history and colours."""

import importlib.util
import sys

from bert4keras_rwkv.cli.screen import prompt_of


def lines_of(conversation, screen):
    """What gives lines, a str for each call of `next_line()` and None at the end, as well as it can be done here."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Piped(conversation, sys.stdin.buffer)
    if importlib.util.find_spec("prompt_toolkit") is None:
        return Typed(conversation)
    editor = importlib.import_module("bert4keras_rwkv.cli.editor")  # which cannot be loaded without prompt_toolkit
    return editor.Editor(conversation, screen)


class Lines:
    """Lines, each a message or a command; where messages are of several lines, an empty one ends a message."""

    def __init__(self, conversation):
        self._conversation = conversation

    def next_line(self):
        """A line, or the lines of a message; None at the end."""
        lines = []
        while (line := self._line(first=not lines)) is not None:
            if not self._conversation.multiline or (not lines and line.startswith(("/", "+"))):
                return line
            if not line:
                return "\n".join(lines)
            lines.append(line)
        return "\n".join(lines) or None


class Piped(Lines):
    """Lines of UTF-8 from a stream of bytes."""

    talking = False

    def __init__(self, conversation, stream):
        super().__init__(conversation)
        self._stream, self._number = stream, 0

    def _line(self, first):
        """The next line without its end, None where there is none. Raises ValueError for one that is no text."""
        line = self._stream.readline()
        self._number += 1
        if not line:
            return None
        try:
            return line.decode("utf-8-sig" if self._number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"Line {self._number} is no text in UTF-8: {error}.") from error


class Typed(Lines):
    """Lines that a person types, where nothing but Python is installed."""

    talking = True

    def __init__(self, conversation):
        super().__init__(conversation)
        importlib.import_module("readline") if importlib.util.find_spec("readline") else None

    def _line(self, first):
        try:
            return input(prompt_of(self._conversation) if first else "... ")
        except EOFError:
            return None
