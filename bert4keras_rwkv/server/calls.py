"""Calls of functions in the text of an answer, as it comes: it does not matter into which pieces the text is cut."""

import itertools
import json
import re
import uuid

from bert4keras_rwkv.untrusted import parse_json

FENCE_BEGUN = re.compile(r"`{1,2}|```(?:j|js|jso|json)?\s*")
FENCED = re.compile(r"```(?:json)?\s*")
STRING = r'"((?:[^"\\]|\\.)*)"'
HEAD = re.compile(rf'\{{\s*"name"\s*:\s*{STRING}\s*,\s*"arguments"\s*:\s*\{{')
FIRST_KEY, NAME = re.compile(rf"\{{\s*{STRING}"), re.compile(rf'\{{\s*"name"\s*:\s*{STRING}')
LONGEST_HEAD = 256  # characters in which it shows whether a value may be a call


class CallReply:
    """An answer in which functions may be called: deltas of content, and of calls, whose arguments come as written.

    A call is a value `{"name": ..., "arguments": {...}}`, or a list of such, that begins the answer or stands between
    fences at the beginning of a line; all other text is content, as is a call of a function that is not there. names:
    of the functions. thought: what stands before and behind a thought, in which nothing is called. parallel: whether
    there may be more than one call; what comes behind the last is left out. opening: what the text begins with, that
    the model was given.
    """

    def __init__(self, names, opening="", thought=None, parallel=True):
        self._opening = opening
        self._names, self._thought, self._parallel = names, thought, parallel
        self._state = self._look
        self._held = ""  # text of which it does not show yet what it is
        self._fresh = True  # whether a call needs no fence here
        self._said, self._tail = False, ""
        self._calls = 0
        self._told = False  # whether a call of the value was
        self._found = []  # (None, None, content) or (number of a call, its name or None, arguments), not given out yet

    def feed(self, text):
        """The deltas that more text gives, a list of dicts."""
        for one in self._opening + text:
            self._state(one)
        self._opening = ""
        return self._given()

    def end(self, reason):
        """The deltas that are left when the text has ended, for whatever reason."""
        if (self._state == self._look and (self._held.strip() or not self._calls)) or self._undecided:
            self._say(self._held)
        self._state = self._skip
        return self._given()

    def reason(self, reason):
        """Why it has ended, as the protocol calls it."""
        return "tool_calls" if self._calls and reason == "stop" else reason

    @property
    def _undecided(self):
        """Whether a value has begun of which nothing was told."""
        return self._state == self._read and not self._told

    def _given(self):
        """The deltas of what was found."""
        found, self._found = self._found, []
        return [_delta(number, list(parts)) for number, parts in itertools.groupby(found, lambda part: part[0])]

    def _say(self, text):
        """Text is content. An answer does not begin with space."""
        text = text if self._said else text.lstrip()
        self._said = self._said or bool(text)
        if text:
            self._found.append((None, None, text))

    def _call(self, name, arguments):
        """A call has begun."""
        self._found.append((self._calls, name, arguments))
        self._calls, self._told = self._calls + 1, True

    def _look(self, one):
        """Content, until a value begins that may be a call."""
        self._held += one
        lead = self._held.lstrip()
        begins_line = self._fresh or "\n" in self._held[: len(self._held) - len(lead)]
        if not lead or (begins_line and FENCE_BEGUN.fullmatch(lead)):
            return
        if self._fresh and self._thought and self._thought[0].startswith(lead):
            if lead == self._thought[0]:
                self._content(self._held)
                self._state = self._think
            return
        bare = self._fresh and len(lead) == 1
        if lead[-1] in "[{" and (bare or (begins_line and FENCED.fullmatch(lead[:-1]))):
            self._value(lead[-1])
            return
        line = self._held.rfind("\n")
        if line > 0:  # a fence may begin there, behind the end of another
            held = self._held
            self._content(held[:line])
            for again in held[line:]:
                self._state(again)
            return
        self._content(self._held)

    def _content(self, text):
        self._say(text)
        self._held, self._fresh = "", False

    def _think(self, one):
        """Content, until the thought ends."""
        self._say(one)
        self._tail = (self._tail + one)[-len(self._thought[1]) :]
        if self._tail == self._thought[1]:
            self._state, self._fresh = self._look, True

    def _value(self, bracket):
        """A value begins that may be calls."""
        self._base = int(bracket == "[")  # how deep an object lies in which a call stands
        self._depth, self._string, self._escaped = 0, False, False
        self._object, self._inside, self._told, self._spoiled = "", None, False, False
        self._state, self._held = self._read, self._held[:-1]
        self._read(bracket)

    def _read(self, one):
        """A value, while it may be calls."""
        self._held += "" if self._told else one
        outside = not self._string and self._depth <= self._base
        self._follow(one)
        if outside and self._base and self._depth == 1:  # the list itself
            if one not in "[, \t\r\n":
                self._no_call()
        elif not outside or self._depth > self._base:
            self._in_object(one)
        if self._depth == 0 and self._undecided:
            self._no_call()
        elif self._depth == 0 and self._state == self._read:
            self._state = self._behind if self._parallel else self._skip
            self._held, self._fresh = "", True

    def _follow(self, one):
        """Keep count of brackets, but for those in strings."""
        if self._string:
            self._string = one != '"' or self._escaped
            self._escaped = one == "\\" and not self._escaped
        elif one == '"':
            self._string = True
        elif one in "[{":
            self._depth += 1
        elif one in "]}":
            self._depth -= 1

    def _in_object(self, one):
        """A character of an object that may be a call. _inside: whether the arguments are being told, None before."""
        if self._spoiled:
            return
        self._object += one if self._inside is None else ""
        closed = self._depth == self._base and not self._string
        if self._inside:
            self._found.append((self._calls - 1, None, one))
            self._inside = self._depth > self._base + 1 or self._string
        elif self._inside is None and one == "{" and (head := HEAD.fullmatch(self._object)):
            if head[1] in self._names:
                self._call(head[1], one)
                self._inside = True
        elif self._inside is None and closed:
            self._whole()
        elif self._inside is None and not self._possible():
            self._no_call()
        if closed:
            self._object, self._inside = "", None
            self._spoiled = self._spoiled or not self._parallel

    def _whole(self):
        """An object has ended of which nothing was told."""
        call = call_in(self._object, self._names)
        if call is None:
            self._no_call()
            return
        self._call(*call)

    def _possible(self):
        """Whether an object that has begun may be a call."""
        text = self._object
        if len(text) > LONGEST_HEAD:
            return True
        if text[0] != "{" or text[1:].strip()[:1] not in ("", '"'):
            return False
        key, name = FIRST_KEY.match(text), NAME.match(text)
        return not (key and key[1] not in ("name", "arguments")) and not (name and name[1] not in self._names)

    def _no_call(self):
        """The value is content, unless a call in it was told: then the rest of it is left out."""
        if self._told:
            self._spoiled = True
            return
        self._content(self._held)
        self._state = self._look

    def _behind(self, one):
        """The fence behind a value."""
        self._held += one
        lead = self._held.lstrip()
        if lead in ("", "`", "``"):
            return
        held = "" if lead == "```" else self._held
        self._held, self._state = "", self._look
        for again in held:
            self._state(again)

    def _skip(self, one):
        """What is left out."""


def _delta(number, parts):
    """One delta, of content or of a call, of the parts that it was found in."""
    text = "".join(part[2] for part in parts)
    if number is None:
        return {"content": text}
    name = parts[0][1]
    if name is None:
        return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}
    begun = {"index": number, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
    return {"tool_calls": [begun | {"function": {"name": name, "arguments": text}}]}


def call_in(text, names):
    """(name, arguments) of a JSON text that is a call of one of the functions, else None."""
    try:
        found = parse_json(text, "A call")
    except ValueError:
        return None
    arguments = found.get("arguments", {})
    if isinstance(arguments, str):
        inner = _object(arguments)
        written = arguments if inner is not None else None
    else:
        written = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else None
    known = found.get("name") in names and set(found) <= {"name", "arguments"}
    return (found["name"], written) if known and written is not None else None


def _object(text):
    try:
        found = parse_json(text, "The arguments")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
