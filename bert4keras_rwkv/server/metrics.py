"""What Prometheus is told of one server. Nothing here is called for each token: the scheduler counts, and is read."""

import itertools
import time

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from bert4keras_rwkv.server.asked import Done, Piece

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OTHER = "other"  # requests that no route was for


class Metrics:
    """The metrics of one server, in a registry of its own. scheduler: a `Scheduler`, asked whenever somebody looks.

    Labels are names of routes, statuses and reasons, never what a request says.
    """

    def __init__(self, scheduler):
        registry = self.registry = CollectorRegistry()
        self._looked_up = []
        self._requests = Counter(
            "rwkv_requests", "Requests by route and HTTP status.", ["endpoint", "status"], registry=registry
        )
        self._seconds = Histogram(
            "rwkv_request_seconds",
            "From a request to the end of its response.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "rwkv_first_token_seconds",
            "From when an answer was asked for to its first text.",
            buckets=SECONDS,
            registry=registry,
        )
        self._answers = Counter("rwkv_answers", "Answers by how they ended.", ["reason"], registry=registry)
        ProcessCollector(registry=registry)
        self._watch(scheduler)
        registry.register(self)

    def _watch(self, scheduler):
        figures = scheduler.figures
        self.level("rwkv_answers_running", "Answers that are being written.", lambda: scheduler.running)
        self.level("rwkv_answers_waiting", "Answers that have not begun.", lambda: scheduler.waiting)
        self.level("rwkv_batch_size", "Rows that are computed at each step.", lambda: scheduler.batch_size)
        self.counted("rwkv_steps", "Steps, each a token for all rows that are there.", lambda: figures.steps)
        self.counted("rwkv_prompt_tokens", "Tokens of prompts.", lambda: figures.read)
        self.counted("rwkv_cached_tokens", "Tokens of prompts that the cache had.", lambda: figures.cached)
        self.counted("rwkv_generated_tokens", "Tokens that were drawn.", lambda: figures.written)

    def level(self, name, text, read):
        """Show what `read()` gives, a number."""
        self._looked_up.append(lambda: [GaugeMetricFamily(name, text, read())])

    def counted(self, name, text, read):
        """The same of a number that only grows. Its name is followed by `_total`."""
        self._looked_up.append(lambda: [CounterMetricFamily(name, text, read())])

    def watch_cache(self, cache):
        """Show what `figures()` of a cache of states says."""
        self._looked_up.append(lambda: _of_cache(cache.figures()))

    def collect(self):
        """For the registry."""
        return itertools.chain.from_iterable(look_up() for look_up in self._looked_up)

    def timed(self, deliver):
        """A `deliver` for `Scheduler.submit` that also counts the answers, and times them from now on."""
        since, begun = time.monotonic(), set()

        def timed(event):
            if isinstance(event, Piece):
                if event.answer not in begun:
                    begun.add(event.answer)
                    self._first.observe(time.monotonic() - since)
            else:
                self._answers.labels(event.reason if isinstance(event, Done) else "failed").inc()
            deliver(event)

        return timed

    def request(self, endpoint, status, seconds):
        """A response has ended. endpoint: the path of its route."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def shown(self, accept):
        """(bytes, media type) of everything, in the form that an Accept header asks for."""
        try:
            encode, media_type = choose_encoder(accept)
        except ValueError:  # of a version that is no number
            encode, media_type = choose_encoder("")
        return encode(self.registry), media_type


class Measured:
    """An ASGI application whose HTTP requests are counted in `metrics` when their responses have ended."""

    def __init__(self, app, metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        since, status = time.monotonic(), 500  # which is sent outside of here, where an exception comes by

        async def sent(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            endpoint = getattr(scope.get("route"), "path", OTHER).removeprefix("/v1")
            self._metrics.request(endpoint, status, time.monotonic() - since)


def _of_cache(figures):
    """Families of the `Figures` of a cache. Places are 'memory' and 'disk'."""
    found = {"memory": figures.hits - figures.disk_hits, "disk": figures.disk_hits}
    size = {"memory": figures.memory_bytes, "disk": figures.disk_bytes}
    entries = {"memory": figures.memory_entries, "disk": figures.disk_entries}
    yield CounterMetricFamily("rwkv_cache_misses", "Prompts of which the cache had nothing.", figures.misses)
    yield _placed(CounterMetricFamily, "rwkv_cache_hits", "Prompts of which the cache had the beginning.", found)
    yield _placed(GaugeMetricFamily, "rwkv_cache_bytes", "What the states in the cache take.", size)
    yield _placed(GaugeMetricFamily, "rwkv_cache_states", "States in the cache.", entries)


def _placed(kind, name, text, numbers):
    family = kind(name, text, labels=["place"])
    for place, number in numbers.items():
        family.add_metric([place], number)
    return family
