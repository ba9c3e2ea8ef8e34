"""The server over HTTP, as OpenAI's own client meets it, and as those do who mean no good."""

import asyncio
import json
import socket
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import uvicorn

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.server.access import LOCAL_NAMES, Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.scheduler import Scheduler
from bert4keras_rwkv.server.service import Service
from bert4keras_rwkv.templates import template_of
from tests.server.models import endless

pytestmark = pytest.mark.on("jax")
KEY = "a key"
MESSAGES = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "What is a hacker?"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def rwkv():
    return endless()


@pytest.fixture(scope="module")
def service(rwkv):
    scheduler = Scheduler(rwkv, max_batch=4, queue=6)
    scheduler.start()
    access = Access([KEY, "another"], LOCAL_NAMES, largest=100_000)
    return Service("talker", scheduler, template_of("world"), rwkv.config.vocab_size, access, 5000, 2000)


@pytest.fixture(scope="module")
def address(service):
    """Where uvicorn serves, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        yield http


def written(rwkv, prompt, tokens=12, sampling="greedy", **options):
    return rwkv.generate(prompt, max_new_tokens=tokens, sampling=sampling, strip_prompt=True, **options)


def test_a_chat_is_what_the_model_writes_behind_its_template(rwkv, client):
    told = client.chat.completions.create(model="talker", messages=MESSAGES, **GREEDY)
    prompt = "System: Be brief.\n\nUser: What is a hacker?\n\nAssistant:"
    assert told.choices[0].message.content == written(rwkv, prompt, stop_texts="\n\n").lstrip()
    assert told.choices[0].finish_reason in ("stop", "length")
    assert told.usage.prompt_tokens == len(rwkv.tokenizer.encode(prompt))
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a hacker?"}]
    same = [MESSAGES[0], {"role": "user", "content": parts}]
    again = client.chat.completions.create(model="talker", messages=same, max_completion_tokens=12, temperature=0)
    assert again.choices[0].message.content == told.choices[0].message.content


def test_a_reply_that_has_begun_is_gone_on_with(rwkv, http):
    """As the model goes on behind it: no new turn, and nothing stripped. Where nothing has begun it is a 400."""
    begun = [*MESSAGES, {"role": "assistant", "content": "A person who"}]
    asked = {"messages": begun, "continue_final_message": True, "temperature": 0, "max_tokens": 12}
    told = http.post("/v1/chat/completions", json=asked).json()
    prompt = "System: Be brief.\n\nUser: What is a hacker?\n\nAssistant: A person who"
    assert told["choices"][0]["message"]["content"] == written(rwkv, prompt, stop_texts="\n\n")
    assert told["usage"]["prompt_tokens"] == len(rwkv.tokenizer.encode(prompt))
    for messages in (MESSAGES, [*MESSAGES, {"role": "assistant", "content": ""}]):
        answer = http.post("/v1/chat/completions", json={**asked, "messages": messages})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"


def test_a_stream_is_the_whole_answer_in_pieces(client):
    asked = {"model": "talker", "messages": MESSAGES, "seed": 5, "n": 3, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    texts, reasons, usage = [""] * 3, [None] * 3, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_completions_of_several_prompts_and_a_stop_that_is_never_shown(rwkv, client):
    drawn = {"sampling": Sampling(temperature=1.2, presence_penalty=0.3), "tokens": 30}
    whole = written(rwkv, ["once", "more"], **drawn, seed=4)
    told = client.completions.create(
        model="talker", prompt=["once", "more"], max_tokens=30, temperature=1.2, presence_penalty=0.3, seed=4
    )
    assert [choice.text for choice in told.choices] == whole
    stop = whole[0][10:13]
    pieces = client.completions.create(
        model="talker",
        prompt=rwkv.tokenizer.encode("once"),
        max_tokens=30,
        temperature=1.2,
        presence_penalty=0.3,
        seed=4,
        stop=[stop, "never there"],
        stream=True,
    )
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole[0][: whole[0].index(stop)]


def text(told):
    """The bytes of a token as completions tell of it."""
    return bytes.fromhex(told[6:].replace("\\x", "")) if told.startswith("bytes:") else told.encode()


def test_logprobs_are_those_of_the_model(rwkv, client):
    """Against the logits of the whole text, read at once."""
    prompt, asked = "once more", {"max_new_tokens": 9, "sampling": "random", "seed": 4}
    ids = rwkv.tokenizer.encode(prompt)
    ids += rwkv.stream(np.array(ids), **asked)
    told = client.completions.create(model="talker", prompt=prompt, logprobs=3, seed=4, max_tokens=9).choices[0]
    found = told.logprobs
    first = len(ids) - len(found.tokens)
    texts = [rwkv.tokenizer.decode_bytes(one) for one in ids[first:]]
    assert [text(one) for one in found.tokens] == texts and found.text_offset[1] == len(found.tokens[0])
    logits = ops.convert_to_numpy(rwkv.forward(np.array([ids]))[0])[0].astype("float64")
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for place, (one, top) in enumerate(zip(found.token_logprobs, found.top_logprobs, strict=True), first):
        assert one == pytest.approx(logprobs[place - 1, ids[place]], abs=1e-4)
        assert sorted(top.values()) == pytest.approx(sorted(logprobs[place - 1])[-3:], abs=1e-4)
    asked = {"model": "talker", "messages": MESSAGES, **GREEDY, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked).choices[0]
    pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [one for piece in pieces if piece.logprobs for one in piece.logprobs.content]
    assert streamed == whole.logprobs.content
    assert b"".join(bytes(one.bytes) for one in streamed).decode().lstrip().startswith(whole.message.content)
    assert all(one.top_logprobs[0].token == one.token for one in streamed)  # the likeliest was taken


def test_biases_and_the_least_length(rwkv, client):
    first = written(rwkv, "a", 1)
    (token,) = rwkv.tokenizer.encode(first)
    asked = {"model": "talker", "prompt": "a", **GREEDY}
    assert first not in client.completions.create(**asked, logit_bias={str(token): -100}).choices[0].text
    assert client.completions.create(**asked, logit_bias={str(token): 100}).choices[0].text == first * 12
    whole = written(rwkv, "a")
    stopped = client.completions.create(**asked, stop=whole[2]).choices[0]
    assert stopped.text == whole[: whole.index(whole[2])]
    longer = client.completions.create(**asked, stop=whole[2], extra_body={"min_tokens": 7}).choices[0].text
    assert longer.startswith(whole[:7]) and whole[2] not in longer[7:]


def test_an_echo_and_what_was_known_of_a_prompt(client):
    asked = {"model": "talker", "prompt": ["once", "more"], **GREEDY, "n": 2, "echo": True}
    told = client.completions.create(**asked)
    assert [choice.text[:4] for choice in told.choices] == ["once", "once", "more", "more"]
    assert told.usage.prompt_tokens_details.cached_tokens == 0


def test_models_and_tokens(rwkv, client, http):
    assert [model.id for model in client.models.list()] == ["talker"]
    assert client.models.retrieve("talker").id == "talker"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    ids = rwkv.tokenizer.encode("a hacker é")
    assert http.post("/tokenize", json={"content": "a hacker é"}).json() == {"tokens": ids, "count": len(ids)}
    assert http.post("/v1/detokenize", json={"tokens": ids}).json()["prompt"] == "a hacker é"
    assert http.get("/health").json()["status"] == "ok"


CHAT = {"model": "talker", "messages": MESSAGES, **GREEDY}


def test_what_is_too_long_however_it_is_encoded_is_not_encoded(http, service, monkeypatch):
    """`ab` 128 times is the longest token there is."""
    monkeypatch.setattr(type(service.tokenizer), "encode", lambda *_: pytest.fail("It was encoded."))
    asked = {"prompt": "a" * 256 * 2001}
    monkeypatch.setattr(service.access, "_largest", 1 << 20)
    answer = http.post("/v1/completions", json=asked)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "changed, param",
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a " * 3000}]}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 5001}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"min_tokens": 5001}, "min_tokens"),
        ({"penalty_decay": 1.5}, "penalty_decay"),
        ({"mode": "x"}, "mode"),
        ({"session_id": "sess_0", "state": "x"}, "state"),
        ({"session_id": ""}, "session_id"),
        ({"state": "x"}, "state"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_a_400_that_names_the_field(http, changed, param):
    body = json.dumps({**CHAT, **changed})
    answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize("prompt", ["", [], [1, "a"], [-1], [10**6], [10**30], {"a": 1}, [[1], ""], None])
def test_a_prompt_that_is_none_is_a_400(http, prompt):
    answer = http.post("/v1/completions", json={"prompt": prompt})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[" * 100_000, b'{"a":' * 1000, b"\xff", b'{"n": 1, "n": 2}', b'{"n": 1' + b"0" * 5000]
)
def test_what_is_no_json_object_is_a_400(http, body):
    answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413) and answer.json()["error"]["message"]


@pytest.mark.parametrize("tokens", [[10**6], [2**70], [-5], ["a"], None])
def test_ids_that_are_none_are_a_400(http, tokens):
    assert http.post("/detokenize", json={"tokens": tokens}).status_code == 400


def test_unknown_fields_and_nulls_are_ignored(http):
    odd = {"user": "me", "store": False, "no such": {"a": 1}, "stop": None, "seed": None, "top_p": None, "tools": None}
    assert http.post("/chat/completions", json={**CHAT, **odd}).status_code == 200


def test_keys_names_sizes_and_types(http, client, address):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="a ke").models.list()
    assert httpx.get(f"{address}/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{address}/health").status_code == 200
    assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200
    assert http.post("/v1/completions", json={"prompt": "a" * 100_001}).status_code == 413
    plain = {"Content-Type": "text/plain"}
    assert http.post("/v1/completions", content=b'{"prompt": "a"}', headers=plain).status_code == 415
    allowed = http.options("/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in allowed.headers
    assert http.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    assert http.get("/v1/completions").status_code == 405
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")


def freed(service):
    """Whether nothing is written any more, soon."""
    until = time.monotonic() + 10
    while service.scheduler.running or service.scheduler.waiting:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


LONG = {"model": "talker", "prompt": "a", "max_tokens": 5000, "temperature": 0}


def test_who_hangs_up_frees_the_row(service, client, address):
    stream = client.completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    assert freed(service)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(**LONG)
    assert freed(service)


def test_more_than_may_wait_are_a_429_that_says_when(service, address):
    async def ask():
        limits = httpx.Limits(max_connections=20)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=3) as http:
            return await asyncio.gather(
                *(http.post("/v1/completions", json=LONG) for _ in range(14)), return_exceptions=True
            )

    answers = [one for one in asyncio.run(ask()) if isinstance(one, httpx.Response) and one.status_code != 200]
    assert len(answers) >= 4
    assert {one.status_code for one in answers} == {429}
    assert answers[0].headers["retry-after"] and answers[0].json()["error"]["type"] == "rate_limit_error"
    assert freed(service)
