"""The turns of a conversation as one text, as the models have learned them."""

import re
from typing import NamedTuple

from bert4keras_rwkv.untrusted import shown

SPEAKERS = {"system": "System", "user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant"}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")


class Part(NamedTuple):
    """A piece of a prompt or a document that is encoded by itself. answer: whether it is to be learned."""

    text: str
    answer: bool = True


def conversation(turns, place="The conversation"):
    """Turns as `Part`s in the form of World models; only what the assistant says is to be learned.

    turns: dicts with `role` (or `from`) and `content` (or `value`). An empty line ends a turn, so none stays inside
    one. "User: q\\n\\nAssistant: a\\n\\n": RWKV7-G1x-templates.txt of RWKV-LM.
    """
    parts = []
    for number, turn in enumerate(turns):
        role, content = (_first(turn, keys) for keys in (ROLE_KEYS, CONTENT_KEYS))
        if not isinstance(role, str) or role not in SPEAKERS or not isinstance(content, str):
            raise ValueError(
                f"{place}: turn {number} has a `role`, one of {', '.join(SPEAKERS)}, and a text as `content`. "
                f"Received: {shown(turn)}."
            )
        said = re.sub(r"\n{2,}", "\n", content.replace("\r\n", "\n")).strip()
        if SPEAKERS[role] == "Assistant":
            parts += [Part("Assistant:", False), Part(f" {said}\n\n")]
        else:
            parts.append(Part(f"{SPEAKERS[role]}: {said}\n\n", False))
    return parts


def _first(turn, keys):
    """The value of the first key that is there."""
    return next((turn[key] for key in keys if key in turn), None) if isinstance(turn, dict) else None
