"""What a `Conversation` tells of. Whoever shows it, a terminal or a notebook, decides how."""

from typing import NamedTuple


class Begun(NamedTuple):
    """Something will be written. speaker: by whom, as texts have it: 'Assistant:'; '' where nobody speaks. asked: what
    it replies to, as the text of the conversation has it, line feeds included.
    """

    speaker: str
    asked: str = ""


class Thinking(NamedTuple):
    """A reply has come so far, but what it says is no answer yet. tokens: of it."""

    tokens: int


class Piece(NamedTuple):
    """A piece of what is written. tokens: how many there are of it so far."""

    text: str
    tokens: int


class Ended(NamedTuple):
    """What was written has ended. tokens: of it. context: tokens that were read and written in this conversation, or
    in this free text. stopped: because somebody asked for it.
    """

    tokens: int
    context: int
    stopped: bool = False


class Said(NamedTuple):
    """A notice."""

    text: str


class Refused(NamedTuple):
    """What could not be done, why, and what can be. Nothing has changed."""

    text: str


class Table(NamedTuple):
    """rows: tuples of str, all of one length."""

    title: str
    rows: tuple


class Left(NamedTuple):
    """Whoever speaks wants to leave."""
