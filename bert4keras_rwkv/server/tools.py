"""Functions that a model may call: what it is told of them, the grammar of a call, and how calls stand in the history.

A call is JSON between fences, `{"name": ..., "arguments": {...}}`, as RWKV-7 G1 has learned it; several are a list.
"""

import dataclasses
import json

from bert4keras_rwkv.server.constraints import FUNCTIONS, Choice
from bert4keras_rwkv.server.grammar import spaced
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.templates import template_names, template_of
from bert4keras_rwkv.untrusted import shown

FENCE, END = "```json", "\n```"
CALL = "call"  # the mode of a template in which a reply is a call
LAYOUTS = ('{{"name": {}, "arguments": {}}}', '{{\n  "name": {},\n  "arguments": {}\n}}')
DEEPEST = 6  # types in each other, of which a model is told
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclasses.dataclass(frozen=True)
class Tools:
    """The functions of a request. names: of those that may be called. forced: whether one has to be. parallel: whether
    several may be at once.
    """

    functions: tuple
    names: tuple
    forced: bool
    parallel: bool

    def system(self, template):
        """What the system says of them."""
        return template.functions([signature(one) for one in self.functions])

    def mode(self, template):
        """The mode of a reply that has to be a call, None for the usual one."""
        return CALL if self.forced and CALL in template.modes else None

    def grammar(self, template):
        """The Lark grammar of a reply that is a call, behind what its mode opens it with."""
        known = [one for one in self.functions if one.name in self.names]
        rules = [line for number, one in enumerate(known) for line in _rules(number, one)]
        opened = "" if self.mode(template) else json.dumps(template.before_reply + FENCE) + " "
        several = rf' | "[\n" call (",\n" call){{0,{FUNCTIONS - 1}}} "\n]"' if self.parallel else ""
        call = " | ".join(f"call_{number}" for number in range(len(known)))
        return "\n".join([rf'start: {opened}"\n" (call{several}) {json.dumps(END)}', f"call: {call}", *rules])


def tools_of(wanted, template):
    """The `Tools` of a checked request, None where nothing may be called. Raises ApiError."""
    functions = tuple(tool.function for tool in wanted.tools or ())
    names = [one.name for one in functions]
    choice = wanted.tool_choice or Choice("auto" if functions else "none")
    twice = next((place for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        message = f"`tools`: each function has a name of its own. Received: {shown(names[twice])}, twice."
        raise ApiError(400, message, f"tools[{twice}].function.name")
    forced, wish = choice.kind in ("required", "function"), wanted.wish
    if forced and (not names or choice.name not in (None, *names)):
        there = ", ".join(map(shown, names)) or "none"
        message = f"`tool_choice` wants a call of one of `tools`, of which there are: {there}."
        raise ApiError(400, message, "tool_choice")
    if choice.kind == "none" or not names:
        return None
    if template.tools is None:
        fit = ", ".join(f"'{name}'" for name in template_names() if template_of(name).tools is not None)
        message = f"`tools`: the template '{template.name}' knows no functions. Those that do: {fit}."
        raise ApiError(400, message, "tools")
    if forced and wish is not None:
        message = f"`{wish.field}` says what an answer is, and `tool_choice` that it is a call. Leave one out."
        raise ApiError(400, message, wish.field)
    if choice.name is not None:
        return Tools(functions, (choice.name,), True, parallel=False)
    return Tools(functions, tuple(names), forced, wanted.parallel_tool_calls is not False)


def turns_of(messages, template, tools=None, begun=False):
    """The turns of checked messages, dicts of `role` and `content`, as `templates.conversation` takes them.

    Calls stand as the model wrote them, and their results in their order. tools: of which the system tells. begun:
    whether something was said before, in which the calls may be whose results come first. ApiError for the result of a
    call that was not made.
    """
    turns, asked, results = [], None if begun else [], []
    for place, message in enumerate(messages):
        if message.role in ("tool", "function"):
            results.append((_order(message, asked, place), message.content))
            continue
        turns += _results(results)
        calls, results = message.tool_calls or [], []
        asked = [call.id for call in calls] if message.role == "assistant" else asked
        said = "\n".join(filter(None, (message.content, call_text(calls))))
        turns.append({"role": "system" if message.role == "developer" else message.role, "content": said})
    turns += _results(results)
    return turns if tools is None else _told(turns, tools.system(template))


def call_text(calls):
    """Calls as a model writes them, "" for none. calls: of a checked message."""
    written = [_call(call.function.name, call.function.arguments) for call in calls]
    if not written:
        return ""
    body = written[0] if len(written) == 1 else "[\n" + ",\n".join(written) + "\n]"
    return f"{FENCE}\n{body}{END}"


def signature(function):
    """A `Function` as a model is told of it: 'weather(city: string, unit?: "C" | "F"): What the weather is.'"""
    schema = function.parameters or NO_ARGUMENTS
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    first = f"{function.name}({_Types(schema).members(schema)})"
    about = [_line(one.get("description")) if isinstance(one, dict) else "" for one in properties.values()]
    more = [f"  {name}: {text}" for name, text in zip(properties, about, strict=True) if text]
    return "\n".join([f"{first}: {_line(function.description)}" if function.description else first, *more])


def _rules(number, function):
    """The lines of the grammar that are about one function, whose call may have either layout."""
    schema = {**function.parameters, "type": "object"} if function.parameters else NO_ARGUMENTS
    name, place = json.dumps(function.name), f"arguments_{number}"
    layouts = (form.format(name, "\0").split("\0") for form in LAYOUTS)
    ways = " | ".join(f"{json.dumps(before)} {place} {json.dumps(after)}" for before, after in layouts)
    return f"call_{number}: {ways}", f"{place}: %json {json.dumps(spaced(schema, lenient=not function.strict))}"


def _call(name, arguments):
    """A call; one whose arguments have lines of their own was written in lines."""
    return LAYOUTS["\n" in arguments].format(json.dumps(name, ensure_ascii=False), arguments)


def _order(message, asked, place):
    """Which of the calls a result belongs to."""
    if message.tool_call_id is None or asked is None:
        return len(asked or ())
    if message.tool_call_id not in asked:
        field = f"messages[{place}].tool_call_id"
        calls = ", ".join(map(shown, asked)) or "none"
        raise ApiError(400, f"`{field}` is the id of a call before it, of which there are: {calls}.", field)
    return asked.index(message.tool_call_id)


def _results(results):
    """The turn of the results (order, text) of calls that were made at once."""
    texts = [text for _, text in sorted(results, key=lambda one: one[0])]
    return [{"role": "tool", "content": "\n".join(texts)}] if texts else []


def _told(turns, text):
    """Turns in which the system, too, says a text."""
    if turns and turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


class _Types:
    """JSON schemas in a word or a few. root: the schema in which references lead; each is written out once."""

    def __init__(self, root):
        self._root, self._told = root, set()

    def members(self, schema, depth=0):
        """The properties of an object: 'city: string, unit?: string'."""
        properties, needed = schema.get("properties"), schema.get("required")
        needed = needed if isinstance(needed, list) else ()
        found = properties.items() if isinstance(properties, dict) else ()
        return ", ".join(f"{name}{'' if name in needed else '?'}: {self.type(one, depth + 1)}" for name, one in found)

    def type(self, schema, depth):
        """What a value is."""
        if not isinstance(schema, dict) or depth > DEEPEST:
            return "any"
        if isinstance(place := schema.get("$ref"), str):
            return self._named(place, depth + 1)
        if isinstance(values := schema.get("enum"), list):
            return " | ".join(json.dumps(value, ensure_ascii=False) for value in values)
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        for name in ("anyOf", "oneOf"):
            if isinstance(several := schema.get(name), list):
                return " | ".join(dict.fromkeys(self.type(one, depth + 1) for one in several))
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(self.type({"type": one}, depth + 1) for one in kind)
        if kind == "array":
            inner = self.type(schema.get("items"), depth + 1)
            return f"({inner})[]" if " " in inner else f"{inner}[]"
        if kind == "object" and isinstance(schema.get("properties"), dict):
            return f"{{{self.members(schema, depth)}}}"
        return kind if isinstance(kind, str) else "any"

    def _named(self, place, depth):
        """What '#/$defs/Name' is: 'Name {city: string}', and 'Name' from then on."""
        keys, found = place.removeprefix("#").split("/")[1:], self._root
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        name = keys[-1] if keys else "this"
        if place in self._told or not isinstance(found, dict):
            return name
        self._told.add(place)
        return f"{name} {self.type(found, depth)}"


def _line(text):
    return " ".join(text.split()) if isinstance(text, str) else ""
