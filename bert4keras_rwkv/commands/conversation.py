"""Lines in, events out: what ChatRWKV's commands do, and some plain ones."""

import contextlib
import dataclasses
import re
from pathlib import Path

import numpy as np

from bert4keras_rwkv.chat import Chat
from bert4keras_rwkv.commands.events import Begun, Ended, Left, Piece, Refused, Said, Table, Thinking
from bert4keras_rwkv.commands.free import FreeText
from bert4keras_rwkv.commands.lines import COMMANDS, line_of
from bert4keras_rwkv.commands.show import counted, sampling_rows, state_rows
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.request import whole_number
from bert4keras_rwkv.templates import prompt_ids, read_template, template_of
from bert4keras_rwkv.untrusted import parse_json, printable, told

MAIN = "main"  # what the first conversation is called
EMPTY = "Say something: a message, or /help for what else there is."
OF_CHAT = ("mode", "max_new_tokens")  # what can be set beside the fields of `Sampling`
OF_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


class Conversation:
    """One person's conversations with a model, line by line.

        for event in Conversation(Chat(RWKV)).take("Hello"):
            ...

    chat: the `Chat` to begin with. state: the RWKVState that it began in, for another beginning. seed: an int makes
    repeatable what is written apart from it. stop: asked between two events; where it says yes, what is being read or
    written ends there, and is remembered as it was shown. Leaving the iterator does the same. progress(done, total):
    told while a long text is read. file: the one that the chat was loaded from. free_tokens: after how many tokens ends
    what is written apart from it, None for ChatRWKV's 256; `/set max_new_tokens` sets it, too.

    chat, name: the conversation that is gone on with. multiline: whether messages have several lines.
    """

    def __init__(
        self,
        chat,
        state=None,
        seed=None,
        stop=lambda: False,
        progress=lambda done, total: None,
        file=None,
        free_tokens=None,
    ):
        self.chat, self.name, self.multiline = chat, MAIN, False
        self._free_tokens = free_tokens
        self._stop, self._progress = stop, progress
        self._random = np.random.default_rng(None if seed is None else [seed & 0xFFFFFFFF])
        self._state, self._others, self._free = state, {}, None
        self._files = {}  # path -> what its file was like when it was read or written here
        if file is not None:
            self._known(_path(file))
        chat.progress = self._read_so_far

    def take(self, given):
        """The events that a line leads to, an iterator. What goes wrong is an event, too: `Refused`."""
        try:
            line = line_of(given)
            yield from map(Said, line.notices)
            yield from METHODS[line.command](self, line)
        except _StoppedError:
            yield Said("Stopped before all was read: nothing was sent.")
        except (ValueError, OSError) as error:
            yield Refused(printable(told(error)))

    @property
    def speaker(self):
        """Who types, as texts have it, 'User:'; in front of it which conversation this is, if there are several."""
        said = f"{self.chat.template.names['user']}{self.chat.template.mark}"
        return f"[{self.name}] {said}" if self._others else said

    def words(self, command):
        """What may stand behind a command, a list of str."""
        return {"/switch": list(self._others), "/set": [*OF_SAMPLING, *OF_CHAT]}.get(command, [])

    def _message(self, line):
        if not line.text.strip():
            raise ValueError(EMPTY)
        yield from self._reply(line, lambda chat: chat.stream(line.text))

    def _again(self, line):
        yield from self._reply(line, lambda chat: chat.stream_retry())

    def _reply(self, line, begin):
        chat, before = self.chat, self.chat.fork()
        try:
            with _numbers_of(chat, line.numbers):
                stream = begin(chat)
                stopped = yield from self._answer(stream, chat)
        except _StoppedError:
            self.chat = before
            raise
        yield Ended(stream.drawn, len(chat.ids), stopped)

    def _answer(self, stream, chat):
        """The events of a reply, whose thoughts are told of only. Returns whether somebody stopped it."""
        template, turn = chat.template, chat.history[-1]
        asked = "".join(part.text for part in template.turn(turn.role, turn.message, turn.mode))
        begun = Begun(f"{template.names['assistant']}{template.mark}", asked)
        text, given = "", 0
        for piece in stream:
            if not text:
                yield begun
            text += piece
            answer = "" if _may_be_a_thought(text, template) else template.split(text)[1]
            yield Piece(answer[given:], stream.drawn) if answer[given:] else Thinking(stream.drawn)
            given = len(answer)
            if self._stop():
                return True
        if not text:
            yield begun
            return self._stop()
        return False

    def _reset(self, line):
        self.chat.reset()
        yield Said("The conversation begins anew.")

    def _prompt(self, line):
        self._anew(read_template(_path(line.text)))
        self._state = None
        yield Said(f"A new conversation, with the template in {line.text}.")

    def _system(self, line):
        self._anew(self.chat.template, line.text, self._state)
        yield Said("A new conversation, after what the system says.")

    def _anew(self, template, system=None, state=None):
        chat, same = self.chat, ("sampling", "max_new_tokens", "memory", "chunk_len", "progress")
        options = {name: getattr(chat, name) for name in same}
        self.chat = Chat(chat.rwkv, template, system, state, seed=self._new_seed(), **options)

    def _gen(self, line):
        ids = self.chat.rwkv.tokenizer.encode(f"\n{line.text}")
        yield from self._apart(line, ids)

    def _instruction(self, line):
        yield from self._asked_apart(line, template_of("instruction"))

    def _question(self, line):
        yield from self._asked_apart(line, template_of("qa"))

    def _asked_apart(self, line, template):
        ids = prompt_ids(self.chat.rwkv.tokenizer, template, line.text, opening=True)
        yield from self._apart(line, ids, template.stop_texts)

    def _question_at_the_start(self, line):
        chat = self.chat.fork()
        chat.reset()
        ids = prompt_ids(chat.rwkv.tokenizer, chat.template, line.text, chat.mode)
        yield from self._apart(line, ids, chat.template.stop_texts, chat.prepare().state, len(chat.ids))

    def _apart(self, line, ids, *more):
        chat = self.chat
        free = FreeText(
            chat.rwkv, ids, self._new_seed, chat.chunk_len, self._read_so_far, *more, tokens=self._free_tokens
        )
        self._free = free
        yield from free.first(self._sampling(line), self._stop)

    def _more(self, line):
        yield from self._something_apart().more(self._sampling(line), self._stop)

    def _written_again(self, line):
        yield from self._something_apart().again(self._sampling(line), self._stop)

    def _something_apart(self):
        if self._free is None:
            raise ValueError("Nothing was written apart from the conversation yet: +gen, +i, +qq and +qa do that.")
        return self._free

    def _undo(self, line):
        if line.text and not line.text.isdecimal():
            raise ValueError(f"/undo is followed by a number of messages, or by nothing. Received: {line.text}.")
        asked, there = int(line.text or 1), len(self.chat.history)
        if not 1 <= asked <= there:
            last = f"; /undo {there} takes back all." if there else "."
            verb = "is" if there == 1 else "are"
            raise ValueError(f"There {verb} {counted(there, 'message') if there else 'no messages'} to take back{last}")
        turns = self.chat.undo(asked)
        yield Said("Taken back: " + " | ".join(turn.message for turn in turns))

    def _fork(self, line):
        if line.text == self.name or line.text in self._others:
            raise ValueError(f"There is a conversation called {line.text} already. Choose another name.")
        self._others[line.text] = self.chat.fork()
        yield Said(f"Kept as {line.text}. /switch {line.text} goes on with it.")

    def _switch(self, line):
        if not line.text:
            there = {**self._others, self.name: self.chat}
            rows = tuple((name, counted(len(there[name].history), "message")) for name in sorted(there))
            yield Table(f"This is {printable(self.name)}. There are:", rows)
            return
        if line.text not in self._others:
            there = ", ".join(sorted(self._others)) or "none but this one: /fork NAME makes another"
            raise ValueError(f"There is no other conversation called {line.text}. There are: {there}.")
        self._others[self.name] = self.chat
        self.chat, self.name = self._others.pop(line.text), line.text
        yield Said(f"This is {line.text}, {counted(len(self.chat.history), 'message')}.")

    def _save(self, line):
        path = _path(line.text)
        if not line.forced and path.exists() and self._files.get(path.absolute()) != _looks(path):
            raise ValueError(
                f"'{path}' is there, and this conversation did not write it, or another program did since. Give "
                f"another name, or /save! {path} to write over it."
            )
        self.chat.save(path)
        self._known(path)
        yield Said(f"Saved to {path}.")

    def _load(self, line):
        path, chat = _path(line.text), self.chat
        options = {name: getattr(chat, name) for name in ("memory", "chunk_len", "progress")}
        self.chat = Chat.load(path, chat.rwkv, **options)
        self._known(path)
        yield Said(f"{path}: {counted(len(self.chat.history), 'message')}.")
        for turn in self.chat.history[-1:]:
            yield Said(f"The last one: {turn.message}")

    def _known(self, path):
        """Remember what a file is like, so that it is noticed when another program has written it since."""
        self._files[path.absolute()] = _looks(path)

    def _set(self, line):
        chat, (name, _, value) = self.chat, line.text.partition(" ")
        if not name:
            rows = [(name, str(getattr(chat.sampling, name))) for name in OF_SAMPLING]
            rows += [(name, str(getattr(chat, name))) for name in OF_CHAT]
            modes = f"; modes: {', '.join(chat.template.modes)}" if chat.template.modes else ""
            yield Table(f"What can be set, and what it is{modes}", tuple(rows))
            return
        if name == "mode":
            chat.mode = value.strip() or None
        elif name == "max_new_tokens":
            chat.max_new_tokens = self._free_tokens = whole_number(name, _value(name, value), 1)
            if self._free is not None:
                self._free.tokens = self._free_tokens
        elif name in OF_SAMPLING:
            sampling = dataclasses.replace(chat.sampling, **{name: _value(name, value)})
            sampling.check(chat.rwkv.config.vocab_size, 0)
            chat.sampling = sampling
        else:
            raise ValueError(f"There is nothing called {name} to set. There are: {', '.join(self.words('/set'))}.")
        yield Said(f"{name}: {getattr(chat if name in OF_CHAT else chat.sampling, name)}")

    def _show(self, line):
        chat = self.chat
        rows = [
            ("template", chat.template.name + (f", mode {chat.mode}" if chat.mode else "")),
            (
                "tokens",
                f"{len(chat.ids)} in context, {counted(len(chat.history), 'message')}, at most {chat.max_new_tokens} a "
                "reply",
            ),
            *sampling_rows(chat.sampling),
            *state_rows(chat.state),
        ]
        rows += [("thought", turn.thought) for turn in chat.history[-1:] if turn.thought]
        yield Table(f"Conversation {printable(self.name)}", tuple(rows))

    def _multiline(self, line):
        self.multiline = not self.multiline
        yield Said("An empty line ends a message." if self.multiline else "A line is a message.")

    def _help(self, line):
        yield Table("Commands", tuple((command.usage, command.about) for command in COMMANDS.values()))

    def _exit(self, line):
        yield Left()

    def _sampling(self, line):
        return dataclasses.replace(self.chat.sampling, **line.numbers)

    def _new_seed(self):
        return int(self._random.integers(2**31))

    def _read_so_far(self, done, total):
        self._progress(done, total)
        if self._stop():
            raise _StoppedError


class _StoppedError(Exception):
    """Somebody stops what is being read."""


METHODS = {
    None: Conversation._message,
    "+": Conversation._again,
    "+reset": Conversation._reset,
    "+prompt": Conversation._prompt,
    "+gen": Conversation._gen,
    "+i": Conversation._instruction,
    "+qq": Conversation._question,
    "+qa": Conversation._question_at_the_start,
    "+++": Conversation._more,
    "++": Conversation._written_again,
    "/help": Conversation._help,
    "/undo": Conversation._undo,
    "/retry": Conversation._again,
    "/fork": Conversation._fork,
    "/switch": Conversation._switch,
    "/save": Conversation._save,
    "/load": Conversation._load,
    "/system": Conversation._system,
    "/set": Conversation._set,
    "/show": Conversation._show,
    "/multiline": Conversation._multiline,
    "/exit": Conversation._exit,
}


@contextlib.contextmanager
def _numbers_of(chat, numbers):
    """Draw with other numbers while it lasts."""
    before = chat.sampling
    chat.sampling = dataclasses.replace(before, **numbers)
    try:
        yield
    finally:
        chat.sampling = before


def _may_be_a_thought(text, template):
    """Whether a reply has begun as a thought does, and the thought has not ended."""
    if template.thought is None:
        return False
    begin, end = template.thought
    return begin.startswith(text) or (text.startswith(begin) and end not in text)


def _path(text):
    return Path(text).expanduser()


def _looks(path):
    """What tells two versions of a file apart."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _value(name, text):
    """A value as JSON has it, or as `/set` shows it: `none` and `None` are null, `True` is true, `(1,)` is a list."""
    text = text.strip()
    plain = re.sub(r",\s*]", "]", text.lower().translate({ord("("): "[", ord(")"): "]"}))
    try:
        return None if plain == "none" else parse_json(plain, "it")
    except ValueError as error:
        raise ValueError(
            f"/set {name} is followed by a number, a list as [1, 2], or none. Received: {text!r}."
        ) from error
