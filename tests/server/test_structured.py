"""Answers that follow a form, and functions that are called, over HTTP: whatever a random network would like to say."""

import json

import openai
import pytest
from fastapi.testclient import TestClient

from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, begin_service
from bert4keras_rwkv.templates import template_of
from tests.test_chat import talker

pytestmark = pytest.mark.on("jax")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["hack", "kluge"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "one", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks a word up.", "parameters": SCHEMA}}
USER = [{"role": "user", "content": "What is a kluge?"}]
WARM = {"model": "talker", "temperature": 1.5, "max_tokens": 200}


@pytest.fixture(scope="module")
def client():
    service = begin_service(talker(), template_of("g1"), limits=Limits(max_batch=4))
    with TestClient(make_app(service), base_url="http://localhost/v1") as http:
        yield openai.OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=http)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_its_schema(client, seed):
    told = client.chat.completions.create(messages=USER, response_format=FORM, seed=seed, n=2, **WARM)
    for choice in told.choices:
        found = json.loads(choice.message.content)
        assert set(found) == {"name", "age"} and found["name"] in ("hack", "kluge") and 0 <= found["age"] <= 99
        assert choice.finish_reason == "stop"
    pieces = client.chat.completions.create(messages=USER, response_format=FORM, seed=seed, n=2, stream=True, **WARM)
    texts = ["", ""]
    for piece in pieces:
        texts[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in told.choices]


def test_a_completion_follows_an_expression(client):
    asked = {"prompt": "once", "seed": 2, "extra_body": {"regex": "(ab|cd){3}!"}, **WARM}
    text = client.completions.create(**asked).choices[0].text
    assert len(text) == 7 and text[-1] == "!" and set(text[:6:2]) <= {"a", "c"}


def test_forms_may_be_large(client):
    """Hundreds of texts, or of properties."""
    texts = [f"option {number}" for number in range(800)]
    told = client.chat.completions.create(messages=USER, extra_body={"guided_choice": texts}, **WARM)
    assert told.choices[0].message.content in texts
    schema = {"type": "object", "properties": {f"k{i}": {"type": "null"} for i in range(200)}}
    form = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema | {"additionalProperties": False}}}
    told = client.chat.completions.create(messages=USER, response_format=form, **WARM | {"max_tokens": 4000})
    assert set(json.loads(told.choices[0].message.content)) <= set(schema["properties"])


def test_a_call_that_is_wanted_is_made_and_its_result_is_read(client):
    """Streamed and whole it is the same, and the history may hold it."""
    asked = {"messages": USER, "tools": [TOOL], "tool_choice": "required", "seed": 4, **WARM}
    asked["parallel_tool_calls"] = False
    choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "look_up" and set(json.loads(call.function.arguments)) == {"name", "age"}
    name, arguments, reason = "", "", None
    for piece in client.chat.completions.create(**asked, stream=True):
        for part in piece.choices[0].delta.tool_calls or ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        reason = piece.choices[0].finish_reason or reason
    assert (name, arguments, reason) == ("look_up", call.function.arguments, "tool_calls")
    history = [*USER, choice.message.model_dump(exclude_none=True)]
    history.append({"role": "tool", "tool_call_id": call.id, "content": "A clumsy thing that works."})
    told = client.chat.completions.create(messages=history, tools=[TOOL], seed=1, **WARM)
    assert told.usage.prompt_tokens > 60


def test_a_result_goes_into_the_session_of_its_call(client):
    asked = {"messages": USER, "tools": [TOOL], "tool_choice": "required", "seed": 4, **WARM}
    told = client.chat.completions.create(**asked, extra_body={"session_id": "new"})
    call = told.choices[0].message.tool_calls[0]
    result = [{"role": "tool", "tool_call_id": call.id, "content": "A clumsy thing that works."}]
    again = client.chat.completions.create(messages=result, **WARM, extra_body={"session_id": told.session_id})
    assert again.session_id == told.session_id and again.usage.prompt_tokens < told.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages=result, **WARM)


@pytest.mark.parametrize(
    "changed, param",
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": FORM | {"json_schema": {"schema": {"type": "what"}}}}, "response_format"),
        ({"response_format": FORM | {"json_schema": {"schema": {"not": {}}}}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "response_format": FORM}, "response_format"),
        ({"extra_body": {"regex": "(", "response_format": None}}, "regex"),
        ({"extra_body": {"mode": "on"}, "response_format": FORM}, "mode"),
    ],
)
def test_a_form_that_cannot_be_is_a_400(client, changed, param):
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(messages=USER, **WARM, **changed)
    assert told.value.param == param
