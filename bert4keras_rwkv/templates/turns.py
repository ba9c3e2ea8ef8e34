"""The turns of a conversation, as data sets have them, as the parts of a document."""

from bert4keras_rwkv.templates.files import template_of
from bert4keras_rwkv.untrusted import shown

# What data sets call those who speak, and what templates do.
SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")


def conversation(turns, place="The conversation", template="world"):
    """Turns as `Part`s; only what the assistant says is to be learned.

    turns: dicts with `role` (or `from`) and `content` (or `value`). place: what they are called in errors. template:
    one by name, by the path of its file, or a `Template`: "User: q\\n\\nAssistant: a\\n\\n" is that of World models.
    """
    template = template_of(template)
    parts = template.opening(dialogue=False)
    for number, turn in enumerate(turns):
        role, content = (_first(turn, keys) for keys in (ROLE_KEYS, CONTENT_KEYS))
        meant = SPEAKERS.get(role) if isinstance(role, str) else None
        if meant not in template.roles or not isinstance(content, str):
            known = ", ".join(name for name, one in SPEAKERS.items() if one in template.roles)
            raise ValueError(
                f"{place}: turn {number} has a `role`, one of {known}, and a text as `content`. Received: "
                f"{shown(turn)}."
            )
        parts += template.turn(meant, content)
    return parts


def _first(turn, keys):
    """The value of the first key that is there."""
    return next((turn[key] for key in keys if key in turn), None) if isinstance(turn, dict) else None
