"""Vectors of texts over HTTP are the means of what the network makes of their tokens."""

import base64
import json

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from bert4keras_rwkv.models import embedder
from bert4keras_rwkv.models.embedder import SIZES, Embedder
from bert4keras_rwkv.server import embeddings
from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, begin_service
from bert4keras_rwkv.templates import template_of
from tests.test_chat import talker

pytestmark = pytest.mark.on("jax")
SHORT, LONG = "A hacker is", "One more text, é. " * 40


@pytest.fixture(scope="module")
def rwkv():
    return talker()


@pytest.fixture(scope="module")
def service(rwkv):
    limits = Limits(max_batch=1, queue=2, max_prompt=1000)
    service = begin_service(rwkv, template_of("world"), Access(), limits)
    yield service
    service.scheduler.stop(0)


@pytest.fixture(scope="module")
def http(service):
    return TestClient(make_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def truth(rwkv):
    """A function from a text to the mean of the Keras model's hidden states, of unit length."""
    network = talker(with_lm=False).model  # its weights are those of `rwkv`

    def vector(text):
        ids = np.array([rwkv.tokenizer.encode(text)])
        mean = network.predict(ids, verbose=0)[0].mean(0)
        return mean / np.linalg.norm(mean)

    return vector


def test_a_vector_is_the_mean_of_the_last_outputs(rwkv, client, truth):
    """1e-5: float32 sums in another order. The long text is read in pieces, of which the last is padded."""
    told = client.embeddings.create(model="talker", input=[SHORT, LONG])
    for text, one in zip([SHORT, LONG], told.data, strict=True):
        np.testing.assert_allclose(one.embedding, truth(text), atol=1e-5)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-6)
    assert [one.index for one in told.data] == [0, 1]
    assert told.usage.prompt_tokens == told.usage.total_tokens == sum(map(len, rwkv.tokenizer.encode([SHORT, LONG])))
    assert told.model == "talker"


def test_forms_of_texts_and_vectors(rwkv, http, client):
    ids = rwkv.tokenizer.encode([SHORT, LONG])
    whole = client.embeddings.create(model="talker", input=[SHORT, LONG], encoding_format="float").data
    assert client.embeddings.create(model="talker", input=SHORT, encoding_format="float").data == whole[:1]
    assert client.embeddings.create(model="talker", input=ids, encoding_format="float").data == whole
    assert client.embeddings.create(model="talker", input=ids[0], encoding_format="float").data == whole[:1]
    asked = {"input": SHORT, "encoding_format": "base64", "dimensions": rwkv.config.hidden_size}
    told = http.post("/embeddings", json=asked).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(told), "<f4"), np.float32(whole[0].embedding))


@pytest.mark.parametrize("version", ["4", "7"])
def test_pieces_of_any_size_give_one_vector(version):
    rwkv = talker(version)
    reader, ids = Embedder(rwkv.backbone, rwkv.state_for(None, 1)), rwkv.tokenizer.encode(LONG)

    def vector(size):
        read = reader.begin()
        for at in range(0, len(ids), size):
            read = reader.read(read, ids[at : at + size])
        return reader.vector(read)

    np.testing.assert_allclose(vector(SIZES[0]), vector(SIZES[-1]), atol=1e-5)
    np.testing.assert_allclose(vector(7), vector(SIZES[-1]), atol=1e-5)


def test_block_by_block_is_the_same(rwkv, monkeypatch):
    """As wide networks are run on JAX."""
    ids, vectors = rwkv.tokenizer.encode(LONG)[:200], []
    for block_by_block in (False, True):
        monkeypatch.setattr(embedder, "worthwhile", lambda network, answer=block_by_block: answer)
        one = Embedder(rwkv.backbone, rwkv.state_for(None, 1))
        vectors.append(one.vector(one.read(one.begin(), ids)))
    np.testing.assert_allclose(*vectors, atol=1e-5)


@pytest.mark.parametrize(
    "changed, field",
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": None}, "input"),
        ({"input": [SHORT, ""]}, "input"),
        ({"input": [[1], {}]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": "a " * 1000}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 3}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_has_no_vector_is_a_400(http, changed, field):
    body, headers = json.dumps({"input": SHORT, **changed}), {"Content-Type": "application/json"}
    answer = http.post("/v1/embeddings", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_too_much_at_once_is_refused(http, monkeypatch):
    monkeypatch.setattr(embeddings, "TOKENS", 20)
    assert http.post("/v1/embeddings", json={"input": [SHORT, SHORT]}).status_code == 400
    assert http.post("/v1/embeddings", json={"input": SHORT}).status_code == 200
    monkeypatch.setattr(embeddings, "LINE", 0)
    answer = http.post("/v1/embeddings", json={"input": SHORT})
    assert answer.status_code == 429 and answer.headers["retry-after"]
