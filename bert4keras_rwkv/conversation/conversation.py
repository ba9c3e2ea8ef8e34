"""Lines in, events out: what ChatRWKV's commands do, and some plain ones."""

import dataclasses
import json
import os

import numpy as np

from bert4keras_rwkv.chat import Chat
from bert4keras_rwkv.conversation.commands import COMMANDS, line_of
from bert4keras_rwkv.conversation.events import Ended, Left, Piece, Refused, Said, Table
from bert4keras_rwkv.conversation.free import FreeText
from bert4keras_rwkv.conversation.show import sampling_rows, state_rows
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.templates import template_of
from bert4keras_rwkv.untrusted import printable, shown

CHUNK = 256  # tokens that are read between two looks at whether to stop
MAIN = "main"  # what the first conversation is called
EMPTY = "Say something: a message, or /help for what else there is."
OF_CHAT = ("mode", "max_new_tokens")  # what can be set beside the fields of `Sampling`


class Conversation:
    """One person's conversations with a model, line by line.

        for event in conversation.take("Hello"):
            ...

    rwkv, template, system, state, sampling, seed, mode, max_new_tokens: as for `Chat`. chunk_len: tokens that are read
    at a time; between two of them it tells how far it is. stop: asked between two events; where it says yes, what is
    being written ends there, and is remembered as it was shown. Leaving the iterator does the same.
    """

    def __init__(self, rwkv, template="auto", *, seed=None, chunk_len=CHUNK, stop=lambda: False, **of_chat):
        self.rwkv, self.chunk_len, self._stop = rwkv, chunk_len, stop
        self._random = np.random.default_rng(None if seed is None else [seed & 0xFFFFFFFF])
        self._of_chat = {"seed": seed, **of_chat}
        self._template = template
        self.chat = Chat(rwkv, template, **self._of_chat)
        self.name, self._others = MAIN, {}
        self._free = None
        self._files = {}  # path -> what it was like when it was read or written here
        self.multiline = False

    def take(self, given):
        """The events that a line leads to, an iterator. What goes wrong is an event, too: `Refused`."""
        try:
            line = line_of(given)
            yield from METHODS[line.command](self, line)
        except (ValueError, OSError) as error:
            yield Refused(printable(_told(error)))

    def _message(self, line):
        if not line.text.strip():
            yield Refused(EMPTY)
            return
        yield from self._reply(line, self.chat.stream(line.text))

    def _again(self, line):
        yield from self._reply(line, self.chat.stream_retry())

    def _reply(self, line, stream):
        with _numbers_of(self.chat, line.numbers):
            yield from _written(stream, self._stop, lambda: len(self.chat.ids))

    def _reset(self, line):
        self.chat.reset()
        yield Said("The conversation begins anew.")

    def _prompt(self, line):
        yield from self._anew(template_of(_path(line.text)), f"A new conversation with the template in {line.text}.")

    def _system(self, line):
        self._of_chat["system"] = line.text
        yield from self._anew(self._template, "A new conversation, after what the system says.")

    def _anew(self, template, said):
        made = {**self._of_chat, "sampling": self.chat.sampling, "mode": None}
        self.chat = Chat(self.rwkv, template, **made)
        self._template = template
        yield Said(said)

    def _gen(self, line):
        yield from self._apart(line, FreeText.after(self, f"\n{line.text}"))

    def _instruction(self, line):
        yield from self._apart(line, FreeText.answering(self, "instruction", line.text))

    def _question(self, line):
        yield from self._apart(line, FreeText.answering(self, "qa", line.text))

    def _question_at_the_start(self, line):
        chat = self.chat.fork()
        chat.reset()
        yield from self._apart(line, FreeText.answering(self, chat.template, line.text, chat.state))

    def _apart(self, line, free):
        self._free = free
        yield from self._write_apart(line, free.stream)

    def _go_on(self, line):
        yield from self._write_apart(line, self._something_apart().more)

    def _write_again(self, line):
        yield from self._write_apart(line, self._something_apart().again)

    def _something_apart(self):
        if self._free is None:
            raise ValueError("Nothing was written apart from the conversation yet: +gen, +i, +qq or +qa does.")
        return self._free
