"""Responses as OpenAI's own client asks for them: whole, streamed, and one going on from another."""

import dataclasses
import json
from typing import Literal

import openai
import pydantic
import pytest
from fastapi.testclient import TestClient

from bert4keras_rwkv.chat import Chat
from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, Remembering, begin_service
from bert4keras_rwkv.templates import template_of
from tests.test_chat import talker

pytestmark = pytest.mark.on("jax")
SAID = ["What is a hacker?", "And a kluge?\n\nOr a hack?", "Thanks."]
GREEDY = {"model": "talker", "temperature": 0, "max_output_tokens": 20}
ORDER = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
ORDER += ["output_text.done", "content_part.done", "output_item.done"]


@pytest.fixture(scope="module")
def rwkv():
    return talker()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def service(rwkv, folder):
    remembering, limits = Remembering(folder, disk=0), Limits(max_batch=2, max_tokens=5000)
    service = begin_service(rwkv, template_of("world"), Access(["a", "b"]), limits, remembering)
    yield service
    service.scheduler.stop(0)


@pytest.fixture(scope="module")
def http(service):
    return TestClient(make_app(service), raise_server_exceptions=False, headers={"Authorization": "Bearer a"})


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="a", http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def replies(rwkv):
    """What a `Chat` says, which has all ids in one text."""
    chat = Chat(rwkv, "world", dialogue=False, sampling="greedy", max_new_tokens=20)
    return [chat.reply(text).strip() for text in SAID]


def test_a_chain_of_responses_says_what_a_chat_says(client, replies):
    """Only what is new is read. One that has been gone on from can be gone on from in another way."""
    told, ids = None, []
    for text, reply in zip(SAID, replies, strict=True):
        told = client.responses.create(**GREEDY, input=text, previous_response_id=told.id if told else None)
        ids.append(told.id)
        assert told.output_text.strip() == reply
        assert told.usage.input_tokens < 60 and told.usage.total_tokens > told.usage.output_tokens > 0
    assert told.previous_response_id == ids[1]
    assert (
        client.responses.create(**GREEDY, input=SAID[1], previous_response_id=ids[0]).output_text.strip() == replies[1]
    )


def test_a_stream_is_the_whole_response_in_events(client, replies):
    asked = {**GREEDY, "input": [{"role": "user", "content": [{"type": "input_text", "text": SAID[0]}]}]}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [*ORDER, whole.status]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == whole.output_text
    gone_on = client.responses.create(**GREEDY, input=SAID[1], previous_response_id=events[-1].response.id)
    assert gone_on.output_text.strip() == replies[1]


def test_a_response_ends_where_it_may_or_must(client):
    told = client.responses.create(**{**GREEDY, "max_output_tokens": 1}, input=SAID[0])
    assert told.status == "incomplete" and told.incomplete_details.reason == "max_output_tokens"
    assert told.usage.output_tokens == 1 and told.output[0].status == "incomplete"
    whole = client.responses.create(**GREEDY, input=SAID[0]).output_text
    stopped = client.responses.create(**GREEDY, input=SAID[0], extra_body={"stop": whole[3]})
    assert stopped.status == "completed" and stopped.output_text == whole[: whole.index(whole[3])]
    drawn = {"model": "talker", "input": SAID[0], "max_output_tokens": 20, "extra_body": {"seed": 3, "top_k": 9}}
    assert client.responses.create(**drawn).output_text == client.responses.create(**drawn).output_text


def test_instructions_come_first_and_are_no_part_of_what_a_client_has_to_send_again(rwkv, client):
    told = client.responses.create(**GREEDY, instructions="Be brief.", input=SAID[0], metadata={"a": "b"})
    same = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": SAID[0]}]
    assert client.responses.create(**GREEDY, input=same).output_text == told.output_text
    assert (told.instructions, told.metadata) == ("Be brief.", {"a": "b"})
    chat = client.chat.completions.create(model="talker", messages=same, temperature=0, max_tokens=20)
    assert chat.choices[0].message.content == told.output_text
    history = [*same, *told.output, {"role": "user", "content": SAID[1]}]  # as clients send back what they got
    assert client.responses.create(**GREEDY, input=history).usage.input_tokens > told.usage.input_tokens


class Answer(pydantic.BaseModel):
    """One of few."""

    kind: Literal["kluge", "hack"]


def test_a_response_of_a_form(client):
    asked = {"model": "talker", "input": SAID[0], "temperature": 0, "max_output_tokens": 200}
    told = client.responses.parse(**asked, text_format=Answer)
    assert told.status == "completed" and told.output_parsed.kind in ("kluge", "hack")
    assert told.text.format.type == "json_schema" and told.text.format.name == "Answer"
    again = client.responses.create(**asked, previous_response_id=told.id, text={"format": {"type": "json_object"}})
    assert again.output_text.lstrip().startswith("{")


def test_what_is_kept_is_its_owners_and_outlasts_the_server(rwkv, service, folder, client, replies):
    told = client.responses.create(**GREEDY, input=SAID[0])
    begun_again = begin_service(
        rwkv, template_of("world"), Access(["a", "b"]), Limits(max_batch=1), Remembering(folder, disk=0)
    )
    for one in (service, begun_again):
        http = TestClient(make_app(one), headers={"Authorization": "Bearer a"})
        again = openai.OpenAI(base_url="http://testserver/v1", api_key="a", http_client=http, max_retries=0)
        assert again.responses.retrieve(told.id) == told
        gone_on = again.responses.create(**GREEDY, input=SAID[1], previous_response_id=told.id)
        assert gone_on.output_text.strip() == replies[1]
        other = again.with_options(api_key="b")
        for attempt in (
            lambda other=other: other.responses.retrieve(told.id),
            lambda other=other: other.responses.delete(told.id),
            lambda other=other: other.responses.create(**GREEDY, input="a", previous_response_id=told.id),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
    begun_again.scheduler.stop(0)
    client.responses.delete(told.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(told.id)


def test_nothing_is_kept_of_what_is_not_to_be(service, client, monkeypatch):
    told = client.responses.create(**GREEDY, input="a", store=False)
    assert told.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(told.id)
    monkeypatch.setattr(service.states, "largest", 10)
    told = client.responses.create(**GREEDY, input="a")
    assert told.store is False and told.output_text


@pytest.mark.parametrize(
    "changed, field",
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"instructions": 3}, "instructions"),
        ({"max_output_tokens": 5001}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "text.format"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"conversation": "conv_0"}, "conversation"),
        ({"session_id": "new"}, "session_id"),
        ({"n": 2}, "n"),
        ({"previous_response_id": "resp_0", "state": "x"}, "state"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_a_400_that_names_the_field(http, changed, field):
    body = json.dumps({**GREEDY, "input": "a", **changed})
    answer = http.post("/v1/responses", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("id", ["resp_0", "sess_0", "", "../x", "resp_\0", "resp_" + "a" * 1000])
def test_what_is_no_response_is_a_404(http, id):
    answer = http.post("/v1/responses", json={**GREEDY, "input": "a", "previous_response_id": id})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "previous_response_id")
    if id.startswith("resp_") and id.isprintable():
        assert http.get(f"/v1/responses/{id}").status_code == http.delete(f"/v1/responses/{id}").status_code == 404


def test_one_that_takes_too_long_fails(service):
    late = TestClient(make_app(dataclasses.replace(service, seconds=0.0)), headers={"Authorization": "Bearer a"})
    asked = {**GREEDY, "input": "a"}
    assert late.post("/v1/responses", json=asked).status_code == 504
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="a", http_client=late, max_retries=0)
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type == "response.failed" and last.response.error.code == "server_error"
