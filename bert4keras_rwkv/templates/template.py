"""The turns of a conversation as text: what a model is trained on and what a chat reads are made here, by `turn`."""

import dataclasses
import re
from typing import NamedTuple

from bert4keras_rwkv.tokenizers.prompts import unix_lines
from bert4keras_rwkv.untrusted import shown

BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
TEXT = "{text}"


class Part(NamedTuple):
    """A piece of a prompt or a document that is encoded by itself. answer: whether it is to be learned."""

    text: str
    answer: bool = True


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to have a message answered. message: what becomes of its text. opening: how the reply has to begin."""

    message: str = TEXT
    opening: str = ""


@dataclasses.dataclass(frozen=True)
class Template:
    """A form of conversations, as a JSON file holds it (docs/chat.md). `files.read_template` reads one, checked.

    names: {'user': ..., 'assistant': ...}, as texts have them. mark: what stands behind a name. user, system, reply:
    what becomes of a `{text}`; `{user}`, `{assistant}` and `{mark}` stand for the fields above. assistant: what a reply
    comes after. stop: the texts at which a reply ends. tools, tool: of functions that may be called, what the system
    says of them, and what becomes of their results. fold: blank lines inside what is said are left out. begin: stands
    before everything. dialogue: turns that a chat reads first. modes: name -> `Mode`, the first is the usual one.
    thought: what stands before and behind the part of a reply that is not meant to be read. None: there is no such.
    """

    name: str
    names: dict
    user: str
    assistant: str
    reply: str
    stop: tuple
    about: str = ""
    mark: str = ":"
    system: str | None = None
    tools: str | None = None
    tool: str | None = None
    fold: bool = True
    begin: str = ""
    dialogue: tuple = ()
    modes: dict = dataclasses.field(default_factory=dict)
    thought: tuple | None = None

    def turn(self, role, text=None, mode=None):
        """What one says as a list of `Part`s; only what the assistant says is to be learned.

        role: 'system', 'user', 'tool', 'assistant'. text: None, of the assistant, for what a reply comes after. mode: a
        key of `modes`, None for the first. Raises ValueError for a role or a mode that the template does not have.
        """
        way = self.mode(mode)
        if role == "assistant":
            parts = [Part(self._filled(self.assistant), False)]
            if text is not None:
                return [*parts, Part(self._filled(self.reply, self.clean(text)))]
            return [*parts, Part(self.before_reply + way.opening, False)] if way.opening else parts
        form = {"system": self.system, "user": self.user, "tool": self.tool}.get(role)
        if form is None:
            raise ValueError(
                f"The template '{self.name}' has no form for what the {shown(role)} says. It has: "
                f"{', '.join(self.roles)}."
            )
        said = self.clean(text)
        if role == "user":
            said = way.message.replace(TEXT, said)
        return [Part(self._filled(form, said), False)]

    def unfinished(self, text):
        """The `Part`s of a reply that the assistant goes on with behind `text`, of which nothing is changed."""
        return [Part(self._filled(self.assistant), False), Part(self.before_reply + unix_lines(text), False)]

    def opening(self, system=None, dialogue=True):
        """The `Part`s that come first. system: what the system says, or None. dialogue: whether the template's own
        turns follow.
        """
        parts = [Part(self._filled(self.begin), False)] if self.begin else []
        parts += [] if system is None else self.turn("system", system)
        for turn in self.dialogue if dialogue else ():
            parts += self.turn(turn["role"], self._filled(turn["content"]))
        return parts

    def functions(self, signatures):
        """What the system says where functions may be called. signatures: a list of str, 'weather(city: string)'."""
        if self.tools is None:
            raise ValueError(f"The template '{self.name}' knows no functions. Use one that does, such as 'g1'.")
        return self._filled(self.tools, "\n".join(f"- {one}" for one in signatures))

    def clean(self, text):
        """What is said, as models have read it: line feeds, no blank lines where they end a turn, none around it."""
        text = unix_lines(text)
        return (BLANK_LINES.sub("\n", text) if self.fold else text).strip()

    def mode(self, name=None):
        """The `Mode` of a name, None for the usual one."""
        if name is None:
            return next(iter(self.modes.values()), Mode())
        if name not in self.modes:
            there = ", ".join(self.modes) or "none"
            raise ValueError(f"The template '{self.name}' has the modes: {there}. Received: mode={shown(name)}.")
        return self.modes[name]

    def split(self, reply):
        """(thought, answer) of a reply, both str; the thought of one that has not ended may be all of it."""
        if self.thought is None or not reply.startswith(self.thought[0]):
            return "", reply
        thought, _, answer = reply.removeprefix(self.thought[0]).partition(self.thought[1])
        return thought.strip(), answer.lstrip()

    @property
    def roles(self):
        """Who may speak."""
        return [name for name in ("system", "user", "tool") if getattr(self, name) is not None] + ["assistant"]

    @property
    def before_reply(self):
        """What a reply begins with, a space or nothing."""
        return self._filled(self.reply.partition(TEXT)[0])

    @property
    def after_reply(self):
        """What ends a reply."""
        return self._filled(self.reply.partition(TEXT)[2])

    @property
    def stop_texts(self):
        """The texts at which a reply ends, a tuple."""
        return tuple(map(self._filled, self.stop))

    def to_dict(self):
        """The values of a JSON file, as `files.from_values` takes them; what is as usual is left out."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        modes = {name: dataclasses.asdict(mode) for name, mode in self.modes.items()}
        return {name: value for name, value in {**found, "modes": modes}.items() if value != defaults[name]}

    def _filled(self, form, text=""):
        """A form with its names, and then with what is said, whatever braces that has."""
        for name, value in (*self.names.items(), ("mark", self.mark)):
            form = form.replace(f"{{{name}}}", value)
        return form.replace(TEXT, text)
