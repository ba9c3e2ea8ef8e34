"""OpenAI's Responses protocol: what may be asked, and what a response and its events look like."""

import itertools
import json
import time
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bert4keras_rwkv.server.answering import event_text
from bert4keras_rwkv.server.constraints import Message, ResponseFormat
from bert4keras_rwkv.server.protocol import Count, Fields, Wanted, described
from bert4keras_rwkv.server.states import new_id

MESSAGE, MESSAGE_TYPE = "msg_", "message"
LOGPROBS_WANTED = "message.output_text.logprobs"


def only(*harmless):
    """The type of a field that is not known here, for its values that change nothing."""

    def check(given):
        if not any(type(given) is type(one) and given == one for one in harmless):
            raise ValueError("this is not supported here yet. Leave it out")
        return given

    return described(check, Literal[harmless])


def input_items(given):
    """What is said, a list: a text is what the user says."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    kinds = [one.get("type", MESSAGE_TYPE) for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    if any(kind != MESSAGE_TYPE for kind in kinds):
        raise ValueError(f"items of the type '{MESSAGE_TYPE}' are expected: this model reads nothing else")
    return given


def no_tools(given):
    """Checks `tools`: there are none."""
    if given not in (None, []):
        raise ValueError("tools are not supported here yet: /v1/chat/completions has them")
    return given


def no_logprobs(given):
    """Checks `include`: what else it may name does not exist here."""
    if isinstance(given, list) and LOGPROBS_WANTED in given:
        raise ValueError(f"'{LOGPROBS_WANTED}' is not supported here yet. Leave it out")
    return given


class Item(Message):
    """What one has said."""

    role: Literal["system", "developer", "user", "assistant"]


class TextFormat(ResponseFormat):
    """What the text is: what `response_format` has, in one object."""

    name: str | None = None
    strict: bool | None = None

    @property
    def lenient(self):
        return self.strict is False


class TextSettings(Fields):
    """Of the text of an answer."""

    format: TextFormat | None = None


class ResponseWanted(Wanted):
    """Of /v1/responses. What chats have beside OpenAI's fields is here, too."""

    input: Annotated[
        list[Item],
        Field(min_length=1),
        BeforeValidator(input_items, json_schema_input_type=str | Annotated[list[Item], Field(min_length=1)]),
    ]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    mode: str | None = None
    text: TextSettings | None = None
    include: described(no_logprobs, list[str] | None) = None
    tools: described(no_tools, Annotated[list[Any], Field(max_length=0)] | None) = None
    tool_choice: only(None, "none", "auto") = None
    n: only(None, 1) = None
    session_id: only(None) = None
    background: only(None, False) = None
    conversation: only(None) = None
    prompt: only(None) = None

    logprobs_wanted: ClassVar[None] = None

    @property
    def form(self):
        """The `TextFormat`."""
        return (self.text and self.text.format) or TextFormat(type="text")

    @property
    def wish(self):
        """The `Wish`, None for any text."""
        return self.form.wish("text.format")

    @property
    def messages(self):
        """All that is said, the instructions first."""
        told = [] if self.instructions is None else [Item(role="system", content=self.instructions)]
        return [*told, *self.input]


class Response:
    """One response while it comes to be. wanted: a `ResponseWanted`. kept: whether it is to be gone on from."""

    def __init__(self, id, wanted, model, kept):
        self.id, self._message, self._numbers = id, new_id(MESSAGE), itertools.count()
        self._part = {"item_id": self._message, "output_index": 0, "content_index": 0}
        self._head = {"id": id, "object": "response", "created_at": int(time.time())}
        self._said = {
            "model": model,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "metadata": wanted.metadata or {},
            "previous_response_id": wanted.previous_response_id,
            "store": kept,
            "temperature": 1.0 if wanted.temperature is None else wanted.temperature,
            "top_p": 1.0 if wanted.top_p is None else wanted.top_p,
            "background": False,
            "parallel_tool_calls": True,
            "text": {"format": wanted.form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
        }

    def told(self, status, output=(), usage=None, error=None, why=None):
        """The response as it is now, a dict. why: it is incomplete."""
        now = {"status": status, "output": list(output), "usage": usage, "error": error}
        return {**self._head, **now, "incomplete_details": None if why is None else {"reason": why}, **self._said}

    def ended(self, done, text, read):
        """The response after a `Done`. read: tokens of the prompt."""
        written = done.tokens
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": done.cached},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }
        status, why = ("incomplete", "max_output_tokens") if done.reason == "length" else ("completed", None)
        return self.told(status, [self._item(status, text)], usage, why=why)

    def failed(self, error):
        """The event that ends a response with an ApiError."""
        said = {"code": "server_error", "message": error.body["error"]["message"]}
        return self._event("response.failed", response=self.told("failed", error=said))

    def opening(self):
        """The events before the first text."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self.told("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress"))
        yield self._event("response.content_part.added", **self._part, part=_text_part(""))

    def delta(self, text):
        """The event of more text."""
        return self._event("response.output_text.delta", **self._part, delta=text, logprobs=[])

    def closing(self, ended, text):
        """The events behind the last text. ended: what `ended` gave."""
        (item,) = ended["output"]
        yield self._event("response.output_text.done", **self._part, text=text, logprobs=[])
        yield self._event("response.content_part.done", **self._part, part=_text_part(text))
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{ended['status']}", response=ended)

    def _item(self, status, text=None):
        content = [] if text is None else [_text_part(text)]
        return {"id": self._message, "type": MESSAGE_TYPE, "role": "assistant", "status": status, "content": content}

    def _event(self, kind, **values):
        """Its text. Events are numbered in the order in which they are made."""
        return f"event: {kind}\n" + event_text({"type": kind, "sequence_number": next(self._numbers), **values})


def as_note(ended):
    """A response as the text that is kept of it."""
    return json.dumps(ended, ensure_ascii=False)


def _text_part(text):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
