"""Clients of every kind. Each asks once, and returns (outcome, what to say of it)."""

import asyncio
import contextlib
import json
import threading

from ..http_load import ask, exchanged
from .outcomes import RIGHT, ROUNDING, UNEXPECTED, WRONG, received, refused, said

LARGE = 3 << 20  # bytes of a body that is too large
PAUSE = 0.2  # seconds between two pieces that a slow reader takes
LONG = 1000  # tokens of an answer that nobody waits for
NO_REQUESTS = [
    b"",
    b"{",
    b"[]",
    b'{"prompt": "a", "n": 0}',
    b'{"prompt": "a", "temperature": "1"}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "\\ud800", "max_tokens": 1}',
    b'{"prompt": [1e9]}',
    b'{"messages": []}',
    b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    b"\xff\xfe",
]
NO_HTTP = [b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n"]


class Clients:
    """served: a `Served`. alone: a worker `peer_alone`. pool: `Question`s. random: a `random.Random`."""

    def __init__(self, served, alone, pool, random):
        self._served, self._alone, self._pool, self._random = served, alone, pool, random
        self._asking = threading.Lock()

    @property
    def kinds(self):
        """name -> (client, how many of it there are beside the others)."""
        return {
            "greedy": (self._greedy, 10),
            "sampled": (self._sampled, 4),
            "several answers": (self._several, 1),
            "vanishing": (self._vanishing, 3),
            "slow reader": (self._slow, 1),
            "no request": (self._no_request, 2),
            "no HTTP": (self._no_http, 1),
            "oversized": (self._oversized, 1),
            "looking around": (self._looking, 1),
        }

    async def judged(self, question, reply):
        """The outcome of a reply to a question."""
        if (outcome := received(reply)) != RIGHT:
            return outcome, said(reply)
        text = reply.texts.get(0, "")
        if text == question.text:
            return RIGHT, ""
        near = await asyncio.to_thread(self._is_near, question.body | {"text": text})
        return (ROUNDING if near else WRONG), f"{question.body}: {text!r}, and alone {question.text!r}"

    def _is_near(self, asked):
        with self._asking:
            return self._alone.ask(json.dumps(asked))["near"]

    async def _ask(self, question, pause=0.0, **changed):
        return await ask(self._served.address, question.path, question.body | changed, pause)

    def _question(self):
        return self._random.choice(self._pool)

    def _often(self, share=0.5):
        return self._random.random() < share

    async def _greedy(self):
        question = self._question()
        return await self.judged(question, await self._ask(question, stream=self._often()))

    async def _slow(self):
        """Who reads a stream slowly holds nobody up, and gets all of it."""
        question = self._question()
        return await self.judged(question, await self._ask(question, PAUSE, stream=True))

    async def _sampled(self):
        drawn = {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.2}
        reply = await self._ask(self._question(), **drawn, stream=self._often())
        return received(reply), said(reply)

    async def _several(self):
        reply = await self._ask(self._question(), n=3, temperature=1.0)
        outcome = received(reply)
        return (UNEXPECTED if outcome == RIGHT and len(reply.texts) != 3 else outcome), said(reply)

    async def _vanishing(self):
        """Who hangs up in the middle, or before anything came."""
        patience = self._random.choice([0.0, 0.02, 0.2, 1.0])
        with contextlib.suppress(TimeoutError):
            asked = self._ask(self._question(), stream=self._often(0.7), max_tokens=LONG)
            await asyncio.wait_for(asked, patience)
        return RIGHT, ""

    async def _no_request(self):
        path = self._random.choice(["/v1/completions", "/v1/chat/completions"])
        return refused(await ask(self._served.address, path, self._random.choice(NO_REQUESTS)))

    async def _no_http(self):
        return refused(await exchanged(self._served.address, self._random.choice(NO_HTTP)))

    async def _oversized(self):
        return refused(await ask(self._served.address, "/v1/completions", {"prompt": "a" * LARGE}))

    async def _looking(self):
        reply = await ask(self._served.address, self._random.choice(["/health", "/v1/models", "/nowhere"]))
        return (RIGHT if reply.status in (200, 404) else UNEXPECTED), said(reply)
