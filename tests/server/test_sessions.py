"""Conversations by their states: what is said turn by turn is what is said with the whole history."""

import concurrent.futures
import contextlib
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from bert4keras_rwkv.chat import Chat
from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, Remembering, begin_service
from bert4keras_rwkv.session import Session
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.templates import template_of
from tests.test_chat import talker

pytestmark = pytest.mark.on("jax")
SAID = ["What is a hacker?", "And a kluge?\n\nOr a hack?", "Thanks."]
GREEDY = {"temperature": 0, "max_tokens": 20}
KEY = {"Authorization": "Bearer a"}


@pytest.fixture(scope="module")
def rwkv():
    return talker()


@pytest.fixture(scope="module")
def tuned(rwkv, tmp_path_factory):
    """The path of a state to begin in."""
    path = tmp_path_factory.mktemp("states") / "tuned.safetensors"
    zeros, noise = RWKVState.zeros(rwkv.config), np.random.default_rng(1)
    arrays = (noise.standard_normal(x.shape).astype("float32") for x in (zeros.wkv, zeros.shift))
    RWKVState(*arrays, zeros.model).save(path)
    return path


@pytest.fixture(scope="module")
def servers(rwkv, tuned, tmp_path_factory):
    """Two that share a key, each with a folder of its own."""
    folder = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server) for server in made(rwkv, tuned, folder)]


def made(rwkv, tuned, folder):
    """The servers, as clients of them."""
    for name in ("one", "two"):
        remembering = Remembering(folder / name, named={"tuned": tuned}, key=folder / "key")
        limits, access = Limits(max_batch=2, max_tokens=5000), Access(["a", "b"])
        service = begin_service(rwkv, template_of("world"), access, limits, remembering)
        yield TestClient(make_app(service), raise_server_exceptions=False)


def ask(client, status=200, key="a", path="/v1/chat/completions", **body):
    told = client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})
    assert told.status_code == status, told.text
    return told.json()


def said(told):
    return told["choices"][0]["message"]["content"].strip()


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(params=[None, "tuned"], ids=["plain", "tuned"])
def begin(request):
    """The name of the state in which a conversation begins."""
    return request.param


@pytest.fixture
def replies(rwkv, tuned, begin):
    """What a `Chat` says, which has all ids in one text."""
    state = RWKVState.load(tuned) if begin else None
    chat = Chat(rwkv, "world", state=state, dialogue=False, sampling="greedy", max_new_tokens=20)
    return [chat.reply(text).strip() for text in SAID]


def test_a_session_says_what_a_chat_says(servers, begin, replies):
    """The first turn in the state of a name, the others in the session's: only what is new is read."""
    client = servers[0]
    session = ask(client, path=f"/v1/states/{begin}/fork")["id"] if begin else "new"
    for text, reply in zip(SAID, replies, strict=True):
        told = ask(client, messages=user(text), session_id=session, **GREEDY)
        session = told["session_id"]
        assert said(told) == reply
        assert told["usage"]["prompt_tokens"] < 60
    about = client.get(f"/v1/states/{session}", headers=KEY).json()
    assert about["kind"] == "session" and about["tokens"] > 60
    ask(client, 404, key="b", messages=user("a"), session_id=session)


def test_a_returned_state_goes_on_on_another_server(servers, begin, replies):
    """Turn by turn, streamed and whole. What was changed on its way is refused."""
    state = begin
    for turn, (text, reply) in enumerate(zip(SAID, replies, strict=True)):
        more = {} if state is None else {"state": state}
        asked = {"messages": user(text), "return_state": True, **GREEDY, **more}
        if turn == 1:
            streamed = servers[turn % 2].post("/v1/chat/completions", json={**asked, "stream": True}, headers=KEY).text
            chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
            assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).strip() == reply
            state = chunks[-1]["state"]
        else:
            told = ask(servers[turn % 2], **asked)
            assert said(told) == reply
            state = told["state"]
    forged = {**state, "data": state["data"][:-8] + "AAAAAAA="}
    error = ask(servers[0], 400, messages=user("a"), state=forged)["error"]
    assert error["param"] == "state" and error["code"] == "state_signature"


def test_turns_of_one_session_at_once_come_one_after_another(servers):
    """Each reads the one before, in some order: the session has read them all."""
    client = servers[0]
    told = ask(client, messages=user("a"), session_id="new", **GREEDY)
    session, before = told["session_id"], told["usage"]["total_tokens"]

    def turn(text):
        return ask(client, messages=user(text), session_id=session, **GREEDY)["usage"]

    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        usages = list(threads.map(turn, "abcde"))
    tokens = client.get(f"/v1/states/{session}", headers=KEY).json()["tokens"]
    waited = sum(usage["prompt_tokens"] for usage in usages)
    assert before < tokens <= before + waited + sum(usage["completion_tokens"] for usage in usages) + 10
    assert tokens > before + waited


def test_a_second_turn_reads_only_what_is_new(servers):
    """With the whole history, as clients send it; so does an earlier message that is edited, and another answer."""
    client, text = servers[1], "Once more, and again. " * 60
    first = ask(client, messages=user(text), **GREEDY)
    prompt = first["usage"]["prompt_tokens"]
    history = [*user(text), {"role": "assistant", "content": "Yes."}, *user("Why?")]
    for messages in (history, user(text), [*history[:2], *user("How?")]):
        usage = ask(client, messages=messages, **GREEDY)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= prompt - 1


def test_what_the_system_says_is_read_once_for_all(servers):
    system = {"role": "system", "content": "Answer in one word. " * 20}
    ask(servers[1], messages=[system, *user("One?")], **GREEDY)
    usage = ask(servers[1], messages=[system, *user("Two?")], **GREEDY)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 300


@pytest.mark.parametrize(
    "changed, status, param",
    [
        ({"session_id": "sess_" + "0" * 32}, 404, "session_id"),
        ({"session_id": "../x"}, 404, "session_id"),
        ({"state": "nobody"}, 404, "state"),
        ({"state": {"data": 1}}, 400, "state"),
        ({"session_id": "new", "n": 2}, 400, "n"),
        ({"return_state": True, "n": 2}, 400, "n"),
        ({"session_id": "tuned"}, 404, "session_id"),
    ],
)
def test_what_is_no_state_is_told_so(servers, changed, status, param):
    assert ask(servers[0], status, messages=user("a"), **GREEDY, **changed)["error"]["param"] == param


def test_a_completion_goes_on_where_its_session_stands(rwkv, servers):
    first = ask(servers[0], path="/v1/completions", prompt="once", session_id="new", temperature=0, max_tokens=9)
    more = {"session_id": first["session_id"], "temperature": 0, "max_tokens": 9}
    again = ask(servers[0], path="/v1/completions", prompt=" more", **more)
    session = Session(rwkv, sampling="greedy").read("once")
    assert first["choices"][0]["text"] == session.write(9)
    assert again["choices"][0]["text"] == session.read(" more").write(9)
    assert ask(servers[0], 400, path="/v1/completions", prompt=["a", "b"], **more)["error"]["param"] == "prompt"
