"""The turns of a chat: what was said, which ids were read and written, and where the text stood."""

import dataclasses
import html
import math
from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.session import Place
from bert4keras_rwkv.state import RWKVState


class Turn(NamedTuple):
    """A message and its reply, as far as it was shown.

    thought, answer: the two parts of a reply that thinks first; else `answer` is all of it. role: who said the message,
    'user' or 'tool'. mode: the name of the template's way of answering, None for the usual one.
    """

    message: str
    reply: str
    thought: str = ""
    answer: str = ""
    role: str = "user"
    mode: str | None = None

    def markdown(self, template):
        """The turn as Markdown: nothing in it is HTML but the fold of a thought."""
        user, assistant = (_plain(template.names[name]) for name in ("user", "assistant"))
        thought = f"<details><summary>…</summary>\n\n{_plain(self.thought)}\n\n</details>\n\n" if self.thought else ""
        said = f"**{user}{template.mark}** {_plain(self.message)}\n\n"
        return f"{said}**{assistant}{template.mark}** {thought}{_plain(self.answer)}"


def _plain(text):
    """A text with its lines, in which a browser finds no HTML."""
    return html.escape(text, quote=False).replace("\n", "  \n")


@dataclasses.dataclass
class Record:
    """What a chat keeps of a turn.

    asked, written: ids that were read with the message, what ended the reply before it included, and ids of the reply.
    raw: the reply as the model wrote it, behind what it had to begin with. drawn: tokens that were drawn for it, also
    those that were never shown. seed, end_seed: (1, 2) int32 as in a `Place`, before and after the reply. before_reply,
    after_reply: the places there, None if they are not kept.
    """

    message: str
    role: str
    mode: str | None
    opening: str
    asked: list
    seed: np.ndarray
    end_seed: np.ndarray
    written: list = dataclasses.field(default_factory=list)
    raw: str = ""
    drawn: int = 0
    before_reply: Place | None = None
    after_reply: Place | None = None

    @property
    def reply(self):
        """The reply as it is shown: without the space that it begins with."""
        return self.opening + (self.raw if self.opening else self.raw.lstrip())

    def turn(self, template):
        """The `Turn` that a user sees."""
        return Turn(self.message, self.reply, *template.split(self.reply), self.role, self.mode)

    def again(self):
        """The record of another answer to the same message, with draws that were not made before."""
        seed = self.seed + np.array([[0, max(1, self.drawn)]], "int32")
        return dataclasses.replace(self, seed=seed, end_seed=seed, written=[], raw="", drawn=0, after_reply=None)


def kept_within(records, config, memory):
    """Forget places of turns in the middle until what is kept fits into `memory` bytes.

    The newest turn keeps its own; then come, in turn, the earliest and the newest of the others.
    """
    size = sum(4 * math.prod(shape) for shape in RWKVState.shapes(config))
    for number, record in enumerate(_by_worth(records)):
        for name in ("after_reply", "before_reply"):
            place = getattr(record, name)
            if place is None or place.before is None:
                continue
            memory -= size
            if memory < 0 and number > 0:
                setattr(record, name, None)


def _by_worth(records):
    """The newest, the earliest, the second newest, and so on."""
    for number in range((len(records) + 1) // 2):
        yield records[-1 - number]
        if number < len(records) - 1 - number:
            yield records[number]
