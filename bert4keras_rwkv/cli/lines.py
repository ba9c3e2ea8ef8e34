"""Where the lines of a conversation come from: a pipe, a terminal, or one with completion, history and colours."""

import importlib.util
import sys

from bert4keras_rwkv.cli.screen import prompt_of


def lines_of(conversation, screen):
    """What gives lines, a str for each call of `next_line()` and None at the end, as well as it can be done here."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Piped(sys.stdin.buffer)
    if importlib.util.find_spec("prompt_toolkit") is None:
        return Typed(conversation)
    editor = importlib.import_module("bert4keras_rwkv.cli.editor")  # which cannot be loaded without prompt_toolkit
    return editor.Editor(conversation, screen)


class Piped:
    """Lines of UTF-8 from a stream of bytes, each a message or a command."""

    talking = False

    def __init__(self, stream):
        self._stream, self._number = stream, 0

    def next_line(self):
        """The next line without its end, None where there is none. Raises ValueError for one that is no text."""
        line = self._stream.readline()
        self._number += 1
        if not line:
            return None
        try:
            return line.decode("utf-8-sig" if self._number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"Line {self._number} is no text in UTF-8: {error}.") from error


class Typed:
    """Lines that a person types, where nothing but Python is installed."""

    talking = True

    def __init__(self, conversation):
        self._conversation = conversation
        importlib.import_module("readline") if importlib.util.find_spec("readline") else None

    def next_line(self):
        """A line, or several where messages are of several lines, which an empty one ends."""
        lines = []
        try:
            while True:
                line = input(prompt_of(self._conversation) if not lines else "... ")
                if not self._conversation.multiline or (not lines and line.startswith(("/", "+"))):
                    return line
                if not line:
                    return "\n".join(lines)
                lines.append(line)
        except EOFError:
            return "\n".join(lines) or None
