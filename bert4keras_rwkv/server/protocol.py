"""OpenAI's protocol: what may be asked, checked, and what the answers and errors look like. It knows no model."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bert4keras_rwkv.untrusted import parse_json, printable, shown

STOPS = 4  # texts that may end an answer
BIASES, BIAS = 1024, 100  # ids in `logit_bias`, and how much each may have
LOGPROBS = 20  # tokens told beside each
TEXT_PARTS = "text", "input_text", "output_text"  # as chats and responses call them
KINDS = {429: "rate_limit_error"} | dict.fromkeys((500, 503, 504, 507), "server_error")
# Fields that would change an answer and are not known here yet, with the values that do not.
NOT_YET = {
    "audio": (None,),
    "best_of": (None, 1),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
}


class ApiError(Exception):
    """What is answered instead, with its HTTP status. param: the field that is wrong. headers: more of them."""

    def __init__(self, status, message, param=None, code=None, headers=None):
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = KINDS.get(status, "invalid_request_error")
        self.body = {"error": {"message": printable(message), "type": kind, "param": param, "code": code}}


def stop_texts(given):
    """The texts of `stop`, a tuple."""
    texts = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) and one for one in texts):
        raise ValueError("a text, or a list of texts, none of them empty, is expected")
    if len(texts) > STOPS:
        raise ValueError(f"at most {STOPS} texts are expected")
    return tuple(texts)


def plain_text(given):
    """The text of a message: a str, or parts of which each is text."""
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, list):
        raise ValueError("a text, or a list of parts, is expected")
    for part in given:
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError("parts of the type 'text' are expected: this model reads nothing else")
    return "".join(part["text"] for part in given)


def prompts(given):
    """A list of prompts, each a str or a list of ids."""
    several = given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    if not all(isinstance(one, str) or (isinstance(one, list) and all(map(is_id, one))) for one in several):
        raise ValueError("a text, a list of token ids, or a list of either is expected")
    return several


def is_id(value):
    return isinstance(value, int) and not isinstance(value, bool)


def biases(given):
    """Pairs (id, number) of `logit_bias`, {"50256": -100}."""
    if given is None:
        return ()
    if not isinstance(given, dict) or len(given) > BIASES:
        raise ValueError(f"an object of at most {BIASES} token ids and numbers is expected")
    if not all(isinstance(one, int | float) and is_number(one) and abs(one) <= BIAS for one in given.values()):
        raise ValueError(f"numbers from -{BIAS} to {BIAS} are expected")
    if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in given):
        raise ValueError('token ids, such as "261", are expected as keys')
    return tuple((int(key), float(one)) for key, one in given.items())


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def chat_logprobs(given):
    """Whether a chat wants them; a completion has a number."""
    if given not in (None, True, False):
        raise ValueError("true or false is expected")
    return bool(given)


def described(function, kind):
    """The type of a field that `function` checks. kind: what OpenAPI says of it, a type."""
    return Annotated[Any, BeforeValidator(function, json_schema_input_type=kind)]


Stop = Annotated[str, Field(min_length=1)]
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
Prompts = described(prompts, str | list[str] | Ids | list[Ids])
Stops = described(stop_texts, Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None)
Biases = described(
    biases,
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-BIAS, le=BIAS)]] | None,
)
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Fields(BaseModel):
    """Unknown fields are ignored, and a number is a number, not a text that looks like one."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(Fields):
    """A part of a message."""

    type: Literal[TEXT_PARTS]
    text: str


Text = described(plain_text, str | list[TextPart] | None)


class StreamOptions(Fields):
    """Of a streamed answer."""

    include_usage: bool | None = None


class Wanted(Fields):
    """What both kinds of requests have. None: as if the field was not there."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stops = ()
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    penalty_decay: Share | None = None
    logit_bias: Biases = ()
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    state: str | dict[str, Any] | None = None
    session_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    return_state: bool | None = None

    @property
    def usage_wanted(self):
        """Whether a stream ends with how many tokens there were."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Message(Fields):
    """What one has said."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text = ""


class ChatWanted(Wanted):
    """Of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: described(chat_logprobs, bool | None) = False
    top_logprobs: Annotated[int, Field(ge=0, le=LOGPROBS)] | None = None
    mode: str | None = None
    continue_final_message: bool | None = None

    @property
    def logprobs_wanted(self):
        """How many of the likeliest tokens are told beside each, None for nothing."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "`top_logprobs` is told beside `logprobs`: set that to true.", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionWanted(Wanted):
    """Of /v1/completions."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS)] | None = None

    @property
    def logprobs_wanted(self):
        """How many of the likeliest tokens are told beside each, None for nothing."""
        return self.logprobs


class TextWanted(Fields):
    """Of /tokenize. The text is called `prompt` by some clients and `content` by others."""

    prompt: str | None = None
    content: str | None = None


class IdsWanted(Fields):
    """Of /detokenize."""

    tokens: Ids


def parsed(kind, body):
    """The JSON `body`, bytes, as a `kind` of `Fields`. Raises ApiError that names the field."""
    try:
        values = parse_json(body, "The body")
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    if not isinstance(values, dict):
        raise ApiError(400, f"The body is a JSON object. Received: {shown(values)}.")
    if issubclass(kind, Wanted):
        for name, harmless in NOT_YET.items():
            if name in values and values[name] not in harmless:
                raise ApiError(400, f"`{name}` is not supported by this server yet. Leave it out.", name)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refused(error.errors()) from error


def refused(errors, within=0):
    """The ApiError of the first of pydantic's errors. within: how many places lead to the fields, `query` for one."""
    first = errors[0]
    name = field_name(first["loc"][within:])
    why = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    received = "" if first["type"] == "missing" else f" Received: {shown(first['input'])}."
    return ApiError(400, f"`{name}`: {why}.{received}", name)


def field_name(place):
    """'messages[0].role' for the keys and places that lead to a value."""
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place).removeprefix(".")
