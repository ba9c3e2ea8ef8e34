"""What those are told who look after a server: numbers that agree with the answers, and none that a request chose."""

import types

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.scheduler import Scheduler
from bert4keras_rwkv.server.service import Service
from bert4keras_rwkv.templates import template_of
from tests.server.models import endless

pytestmark = pytest.mark.on("jax")
KEY = {"Authorization": "Bearer a key"}


@pytest.fixture(scope="module")
def service():
    rwkv = endless()
    scheduler = Scheduler(rwkv, max_batch=3, queue=2)
    return Service("talker", scheduler, template_of("world"), rwkv.config.vocab_size, Access(["a key"]), 50, 200)


@pytest.fixture(scope="module")
def http(service):
    """Asks a server whose scheduler has not started."""
    return TestClient(make_app(service), raise_server_exceptions=False)


def numbers(http):
    """{(name, values of its labels): number} of all samples."""
    told = http.get("/metrics", headers=KEY)
    assert told.status_code == 200 and told.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(told.text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_it_is_ready_when_its_programs_are_and_until_it_stops(service, http):
    """And alive all the time. The numbers agree with what the answers say of themselves."""
    assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200
    service.scheduler.start()
    assert http.get("/ready").json() == {"status": "ready"}
    asked = {"prompt": ["once", "more"], "max_tokens": 20, "n": 2, "seed": 1}
    usage = http.post("/v1/completions", json=asked, headers=KEY).json()["usage"]
    streamed = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9, "stream": True}
    assert "[DONE]" in http.post("/chat/completions", json=streamed, headers=KEY).text
    assert http.post("/completions", json={**asked, "n": 2.5}, headers=KEY).status_code == 400
    assert http.post("/completions", json=asked).status_code == 401
    seen = numbers(http)
    assert seen["rwkv_requests_total", "/completions", "200"] == 1
    assert seen["rwkv_requests_total", "/completions", "400"] == seen["rwkv_requests_total", "/completions", "401"] == 1
    assert seen["rwkv_requests_total", "/chat/completions", "200"] == 1
    assert seen["rwkv_request_seconds_count", "/completions"] == 3
    assert seen["rwkv_first_token_seconds_count",] == 5
    ended = sum(value for (name, *_), value in seen.items() if name == "rwkv_answers_total")
    assert ended == 5
    written = seen["rwkv_generated_tokens_total",]
    assert usage["completion_tokens"] < written <= usage["completion_tokens"] + 9
    assert written / 3 <= seen["rwkv_steps_total",] <= written
    assert seen["rwkv_prompt_tokens_total",] > 0 and seen["rwkv_cached_tokens_total",] == 0
    assert seen["rwkv_answers_running",] == seen["rwkv_answers_waiting",] == 0
    service.scheduler.stop()
    assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200
    assert http.post("/completions", json=asked, headers=KEY).status_code == 503


def test_a_request_chooses_no_label_and_strangers_see_no_numbers(http):
    """Otherwise whoever asks for many paths fills the memory."""
    before = set(numbers(http))
    for path in ("/nowhere/0", "/v1/models/none", "/v1/secret", "/%00", "/models/a/b/c"):
        http.get(path, headers=KEY)
    http.request("BREW", "/v1/completions", headers=KEY)
    assert http.get("/metrics").status_code == http.get("/v1/metrics").status_code == 401
    told = http.get("/metrics", headers=KEY).text
    assert all(word not in told for word in ("nowhere", "none", "secret", "BREW"))
    new = {tuple(labels) for name, *labels in set(numbers(http)) - before if name == "rwkv_requests_total"}
    assert new == {("other", "404"), ("/models/{name:path}", "404"), ("/completions", "405"), ("/metrics", "401")}


def test_a_cache_and_other_numbers_are_looked_up_when_they_are_asked_for(service, http):
    """Hits on disk are hits, so those in memory are the others."""
    figures = {"hits": 5, "disk_hits": 2, "misses": 1, "memory_bytes": 7, "disk_bytes": 9}
    figures = types.SimpleNamespace(**figures, memory_entries=3, disk_entries=4)
    cache = types.SimpleNamespace(figures=lambda: figures)
    service.metrics.watch_cache(cache)
    service.metrics.level("rwkv_states", "States that are kept.", [6, 8].pop)
    seen = numbers(http)
    assert (seen["rwkv_cache_hits_total", "memory"], seen["rwkv_cache_hits_total", "disk"]) == (3, 2)
    assert (seen["rwkv_cache_bytes", "memory"], seen["rwkv_cache_bytes", "disk"]) == (7, 9)
    assert (seen["rwkv_cache_misses_total",], seen["rwkv_states",]) == (1, 8)
    assert numbers(http)["rwkv_states",] == 6
