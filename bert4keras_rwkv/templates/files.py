"""The JSON files of templates: those of the package by name, those of users by path, checked, and which one fits."""

import dataclasses
import functools
import json
import logging
import re
from pathlib import Path

from bert4keras_rwkv.templates.template import TEXT, Mode, Template
from bert4keras_rwkv.tokenizers.find import PILE_SIZES
from bert4keras_rwkv.untrusted import parse_json, printable, regular, shown

FOLDER = Path(__file__).parent
LARGEST_FILE = 1 << 20
USUAL = "world"
PILE, THINKING = "pile", "g1"
THINKS = re.compile(r"rwkv-?7-g\d", re.I)  # how released models that think are called
FORMS = ("user", "assistant", "reply", "system", "tools", "tool", "begin")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
KNOWN = ("text", "user", "assistant", "mark")

logger = logging.getLogger("bert4keras_rwkv")


def template_names():
    """The names of the templates in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def template_of(template):
    """A `Template` from one, from the name of one in the package, or from the path of a JSON file.

    Raises:
        ValueError: no such name or file, or a file that is no template, with the line.
    """
    if isinstance(template, Template):
        return template
    if template in template_names():
        return _shipped(template)
    if isinstance(template, str | Path) and Path(template).suffix == ".json":
        if not Path(template).exists():
            raise ValueError(f"There is no file {shown(str(template))} to read a template from.")
    elif not isinstance(template, str | Path) or not Path(template).is_file():
        raise ValueError(
            f"A template is one of {', '.join(template_names())}, or the path of a JSON file. Received: "
            f"{shown(template)}."
        )
    return read_template(template)


def template_for(name=None, said=None, vocab_size=None):
    """The name of the template that fits a model.

    name: what the model is called, said: what its file says that its template is called, None where nothing is said.
    vocab_size: rows of its embedding.
    """
    if said in template_names():
        return said
    if said is not None:
        logger.warning("The model says that its template is %s, which is not known here.", shown(said))
    if vocab_size in PILE_SIZES:
        return PILE
    return THINKING if name is not None and THINKS.search(name) else USUAL


def read_template(path):
    """The `Template` in a JSON file, checked. A ValueError names the file and the line."""
    size = Path(regular(path, "Templates")).stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"'{path}' has {size} bytes, far more than a template.")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(printable(f"'{path}' is no UTF-8 text: {error}.")) from error
    return from_values(parse_json(text, f"'{path}'"), f"'{path}'", text)


def from_values(values, where, text=None):
    """A `Template` of the values of a JSON file. where: what it is called in errors. text: the file, for the lines."""
    try:
        return _checked(values)
    except Misfit as misfit:
        line = "" if text is None else f", line {line_of(text, misfit.path)}"
        raise ValueError(printable(f"{where}{line}: {misfit}")) from None


class Misfit(ValueError):
    """What is wrong with a template. path: the keys and places that lead to the value."""

    def __init__(self, path, message):
        super().__init__(message)
        self.path = path


@functools.cache
def _shipped(name):
    return read_template(FOLDER / f"{name}.json")


def _checked(values):
    """The `Template` of parsed JSON. Raises `Misfit`."""
    _check_fields(values)
    for name in ("name", "about", "mark", *FORMS):
        if values.get(name) is not None or name in ("name", "user", "assistant", "reply"):
            _text(values[name], (name,), empty=name in ("about", "mark", "begin"))
        if name in FORMS and values.get(name) is not None:
            _form(values[name], (name,), wanted=name not in ("assistant", "begin"))
    if not re.fullmatch(r"[\w.-]+", values["name"]):
        raise Misfit(("name",), f"a name has letters, digits, '-', '_' and '.'. Received: {shown(values['name'])}.")
    if not values["reply"].partition(TEXT)[2]:
        raise Misfit(("reply",), f"something stands behind {TEXT}: what ends a reply, as '\\n\\n' does.")
    if not isinstance(values.get("fold", True), bool):
        raise Misfit(("fold",), f"`fold` is true or false. Received: {shown(values['fold'])}.")
    made = {"names": _names(values["names"]), "stop": _texts(values["stop"], ("stop",))}
    if values.get("thought") is not None:
        made["thought"] = _texts(values["thought"], ("thought",))
        if len(made["thought"]) != 2:
            raise Misfit(("thought",), "`thought` is two texts, what stands before a thought and behind it.")
    made["modes"] = _modes(values.get("modes", {}))
    template = Template(**{**values, **made, "dialogue": ()})
    follows = template.after_reply + template.turn("user", "")[0].text
    if not any(stop in follows for stop in template.stop_texts):
        ends = ", ".join(map(shown, template.stop_texts))
        raise Misfit(("reply",), f"behind {TEXT} stands what ends a reply, one of `stop`: {ends}.")
    return dataclasses.replace(template, dialogue=_dialogue(values.get("dialogue", []), template.roles))


def _check_fields(values):
    """Raise unless all the fields that a template needs are there, and no others."""
    if not isinstance(values, dict):
        raise Misfit((), f"a template is a JSON object. Received: {shown(values)}.")
    fields = dataclasses.fields(Template)
    known = [field.name for field in fields]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise Misfit((unknown,), f"a template has no field {shown(unknown)}. There are: {', '.join(known)}.")
    needed = [field.name for field in fields if field.default is field.default_factory]  # neither is there
    missing = next((name for name in needed if name not in values), None)
    if missing is not None:
        raise Misfit((), f"the field `{missing}` is missing. A template has at least {', '.join(needed)}.")
    empty = next((name for name in ("about", "mark", "begin") if name in values and values[name] is None), None)
    if empty is not None:
        raise Misfit((empty,), f"`{empty}` is a text. Received: null.")


def _text(value, path, empty=False):
    """A str that can be written out."""
    if not isinstance(value, str) or not (value or empty):
        name = f"{path[-2]}[{path[-1]}]" if isinstance(path[-1], int) else path[-1]
        raise Misfit(path, f"`{name}` is a text{'' if empty else ', not empty'}. Received: {shown(value)}.")
    if any("\ud800" <= one <= "\udfff" for one in value):
        raise Misfit(path, f"`{path[-1]}` holds half of a surrogate pair, which is no text.")
    return value


def _texts(value, path):
    if not isinstance(value, list | tuple) or not value:
        raise Misfit(path, f"`{path[-1]}` is a list of texts. Received: {shown(value)}.")
    return tuple(_text(one, (*path, place)) for place, one in enumerate(value))


def _form(value, path, wanted):
    """A text with placeholders; `{text}` comes once where it is wanted, and not at all elsewhere."""
    unknown = next((name for name in PLACEHOLDER.findall(value) if name not in KNOWN), None)
    if unknown is not None:
        known = ", ".join(f"{{{name}}}" for name in KNOWN)
        raise Misfit(path, f"`{path[-1]}` holds {{{unknown}}}. A form may hold {known}.")
    if value.count(TEXT) != wanted:
        rule = f"holds {TEXT} once" if wanted else f"holds no {TEXT}"
        raise Misfit(path, f"`{path[-1]}` {rule}. Received: {shown(value)}.")


def _names(value):
    if not isinstance(value, dict) or set(value) != {"user", "assistant"}:
        raise Misfit(("names",), f"`names` has the keys user and assistant. Received: {shown(value)}.")
    return {name: _text(value[name], ("names", name)) for name in ("user", "assistant")}


def _modes(value):
    if not isinstance(value, dict):
        raise Misfit(("modes",), f"`modes` is an object: a mode under each name. Received: {shown(value)}.")
    found, known = {}, [field.name for field in dataclasses.fields(Mode)]
    for name, said in value.items():
        path = ("modes", name)
        if not isinstance(said, dict) or set(said) - set(known):
            raise Misfit(path, f"a mode is an object with {' and '.join(known)}. Received: {shown(said)}.")
        mode = Mode(**{key: _text(one, (*path, key), empty=key == "opening") for key, one in said.items()})
        if mode.message.count(TEXT) != 1:
            raise Misfit((*path, "message"), f"`message` holds {TEXT} once. Received: {shown(mode.message)}.")
        found[name] = mode
    return found


def _dialogue(value, roles):
    if not isinstance(value, list | tuple):
        raise Misfit(("dialogue",), f"`dialogue` is a list of turns. Received: {shown(value)}.")
    turns = []
    for place, turn in enumerate(value):
        if not isinstance(turn, dict) or set(turn) != {"role", "content"} or turn["role"] not in roles:
            rule = f"a turn has a `role`, one of {', '.join(roles)}, and a text as `content`"
            raise Misfit(("dialogue", place), f"{rule}. Received: {shown(turn)}.")
        turns.append({"role": turn["role"], "content": _text(turn["content"], ("dialogue", place, "content"))})
    return tuple(turns)


def line_of(text, path):
    """The line, from 1, of a value in a valid JSON text. path: keys and places that lead to it."""
    decoder, at = json.JSONDecoder(), _value(text, 0)
    for step in path:
        at, place = _value(text, at + 1), 0
        is_object = isinstance(step, str)
        while True:
            if is_object:
                key, at = decoder.raw_decode(text, at)
                at = _value(text, at)
            if (key if is_object else place) == step:
                break
            at, place = _value(text, decoder.raw_decode(text, at)[1]), place + 1
    return text.count("\n", 0, at) + 1


def _value(text, at):
    """Where the next key or value begins, from `at` on."""
    return re.compile(r"[\s,:]*").match(text, at).end()
