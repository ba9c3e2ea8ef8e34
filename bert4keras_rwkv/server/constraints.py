"""What may be asked of the form of an answer: a JSON schema, an expression, a grammar, functions that may be called."""

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from bert4keras_rwkv.server import protocol
from bert4keras_rwkv.server.protocol import ApiError, Fields
from bert4keras_rwkv.untrusted import parse_json

FUNCTIONS = 128  # that may be offered, and called in one turn


class Choice(NamedTuple):
    """What `tool_choice` says. kind: 'none', 'auto', 'required', or 'function', which is called `name`."""

    kind: str
    name: str | None = None


class Wish(NamedTuple):
    """The grammar that an answer has to follow, as `Grammars.compiled` takes it."""

    kind: str
    source: Any
    field: str
    lenient: bool = False


def schema_of(given):
    """A JSON schema, a dict, from one or from its text."""
    schema = parse_json(given, "the schema") if isinstance(given, str) else given
    if schema is not None and not isinstance(schema, dict):
        raise ValueError("a JSON schema, an object, is expected")
    return schema


def choice_of(given):
    """The `Choice` of `tool_choice`, None where nothing is said."""
    if given is None:
        return None
    if given in ("none", "auto", "required"):
        return Choice(given)
    function = given.get("function") if isinstance(given, dict) and given.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        expected = '{"type": "function", "function": {"name": "..."}}'
        raise ValueError(f"'none', 'auto', 'required' or {expected} is expected")
    return Choice("function", function["name"])


def arguments_of(given):
    """The arguments of a call as text; an object is what some clients send."""
    return json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given


Schema = Annotated[dict[str, Any] | None, BeforeValidator(schema_of)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]


class SchemaFormat(Fields):
    """Of a `response_format`. strict: false leaves out what is not known in the schema, instead of refusing it."""

    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Fields):
    """What an answer is. schema: as llama.cpp's clients have it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check(self):
        if self.type == "json_schema" and self.wanted_schema is None:
            raise ValueError("`json_schema` with a `schema` in it is expected")
        return self

    @property
    def wanted_schema(self):
        """The JSON schema, None for any object."""
        return self.schema_ if self.json_schema is None else self.json_schema.schema_

    @property
    def lenient(self):
        """Whether what is not known in the schema is left out."""
        return self.json_schema is not None and self.json_schema.strict is False

    def wish(self, field):
        """The `Wish`, None for any text."""
        if self.type == "text":
            return None
        kind = "json_object" if self.wanted_schema is None else "json_schema"
        return Wish(kind, self.wanted_schema or {}, field, self.lenient)


class StructuredOutputs(Fields):
    """As vLLM's clients have it."""

    json_: Annotated[Schema, Field(alias="json")] = None
    regex: Text | None = None
    choice: Texts | None = None
    grammar: Text | None = None
    json_object: bool | None = None


class Constrained(Fields):
    """What an answer has to be: OpenAI's field, vLLM's and llama.cpp's. At most one."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema = None
    guided_regex: Text | None = None
    guided_choice: Texts | None = None
    guided_grammar: Text | None = None
    json_schema: Schema = None
    regex: Text | None = None
    grammar: Text | None = None

    @property
    def wish(self):
        """The `Wish`, None for any text. Raises ApiError where there are several."""
        found = [Wish(*one) for one in self._wishes() if one[1] is not None]
        if len(found) > 1:
            names = ", ".join(f"`{one.field}`" for one in found)
            raise ApiError(400, f"One field says what an answer has to be. Received: {names}.", found[1].field)
        return found[0] if found else None

    def _wishes(self):
        if self.response_format is not None and (wish := self.response_format.wish("response_format")) is not None:
            yield wish
        yield "json_schema", self.guided_json, "guided_json"
        yield "json_schema", self.json_schema, "json_schema"
        yield "regex", self.guided_regex, "guided_regex"
        yield "regex", self.regex, "regex"
        yield "lark", one_of(self.guided_choice), "guided_choice"
        yield "lark", self.guided_grammar, "guided_grammar"
        yield "lark", self.grammar, "grammar"
        if (form := self.structured_outputs) is not None:
            yield "json_schema", form.json_, "structured_outputs.json"
            yield "regex", form.regex, "structured_outputs.regex"
            yield "lark", one_of(form.choice), "structured_outputs.choice"
            yield "lark", form.grammar, "structured_outputs.grammar"
            yield "json_object", {} if form.json_object else None, "structured_outputs.json_object"


def one_of(texts):
    """The Lark grammar of one of some texts, None for none."""
    return texts and "start: " + " | ".join(map(json.dumps, texts))


class Function(Fields):
    """One that may be called. parameters: a JSON schema, None: it has none."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """What may be used: functions, and nothing else."""

    type: Literal["function"]
    function: Function


class Called(Fields):
    """Which function was called, and with what."""

    name: Text
    arguments: Annotated[str, BeforeValidator(arguments_of)] = "{}"


class ToolCall(Fields):
    """A call in the history."""

    id: Text
    type: Literal["function"] = "function"
    function: Called


class Message(protocol.Message):
    """What one has said, called, or had as a result."""

    tool_calls: Annotated[list[ToolCall], Field(max_length=FUNCTIONS)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check(self):
        if self.tool_calls and self.role != "assistant":
            raise ValueError("`tool_calls` are the assistant's")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("the result of a tool has a `tool_call_id`")
        return self


class ChatWanted(protocol.ChatWanted, Constrained):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=FUNCTIONS)] | None = None
    tool_choice: Annotated[Any, BeforeValidator(choice_of)] = None
    parallel_tool_calls: bool | None = None


class CompletionWanted(protocol.CompletionWanted, Constrained):
    """Of /v1/completions."""
