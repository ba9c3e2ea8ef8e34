"""Lines that a person types, with completion, history and editing of several lines, by prompt_toolkit."""

import os

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from bert4keras_rwkv.cli.screen import prompt_of
from bert4keras_rwkv.commands.lines import COMMANDS
from bert4keras_rwkv.ops.cache import UnusableError, own_folder

OF_FILES = ("+prompt", "/save", "/save!", "/load")


class Editor:
    """Asks for lines. Alt-Enter begins a new line; with `/multiline` Enter does, and an empty line ends a message."""

    talking = True

    def __init__(self, conversation, screen):
        self._conversation = conversation
        screen.has_status_line = True
        self._session = PromptSession(
            history=_history(),
            completer=CommandCompleter(conversation),
            complete_while_typing=False,
            key_bindings=_keys(conversation),
            multiline=Condition(lambda: conversation.multiline),
            prompt_continuation="... ",
            bottom_toolbar=lambda: screen.status or None,
        )

    def next_line(self):
        """A line, None at the end (Ctrl-D). Ctrl-C is a KeyboardInterrupt."""
        try:
            return self._session.prompt(prompt_of(self._conversation))
        except EOFError:
            return None


class CommandCompleter(Completer):
    """Commands, and behind them files, names of conversations, and what can be set."""

    def __init__(self, conversation):
        self._conversation, self._paths = conversation, PathCompleter(expanduser=True)

    def get_completions(self, document, complete_event):
        before = document.text_before_cursor
        command, space, rest = before.partition(" ")
        if not before.startswith(("/", "+")) or "\n" in before:
            return
        if not space:
            words = [name for name in COMMANDS if name.startswith(command)]
            yield from (Completion(name, -len(command), display_meta=COMMANDS[name].about) for name in words)
        elif command in OF_FILES:
            yield from self._paths.get_completions(Document(rest), complete_event)
        else:
            words = self._conversation.words(command)
            yield from (Completion(name, -len(rest)) for name in words if name.startswith(rest))


def _history():
    """What was typed before, in the user's cache folder; where that cannot be used, of this conversation alone."""
    try:
        path = own_folder("chat") / "history"
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))  # nobody else's business
    except (UnusableError, OSError):
        return InMemoryHistory()
    return FileHistory(path)


def _keys(conversation):
    keys = KeyBindings()

    @keys.add("escape", "enter", filter=Condition(lambda: not conversation.multiline))
    def _(event):
        event.current_buffer.insert_text("\n")

    @keys.add("enter", filter=Condition(lambda: conversation.multiline))
    def _(event):
        buffer = event.current_buffer
        if buffer.text.startswith(("/", "+")) or not buffer.document.current_line.strip():
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys
