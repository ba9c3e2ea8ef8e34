"""Minutes of mixed load: python -m benchmarks.soak --minutes 30. It ends with a table, and 1 if anything is wrong.

Clients ask for streams and whole answers, chats and completions, go on with sessions, hang up, read slowly, and send
what is no request, while the server is killed twice and started again. Each greedy answer is compared with the one that
the model writes alone, in a process without a server.
"""

import argparse
import asyncio
import collections
import contextlib
import functools
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from statistics import median

from .http_load import ask, exchanged
from .rounds import Worker
from .served import Served, ours

KILLS = (0.1, 0.2)  # shares of the time, after which the server is killed
SAMPLE = 1.0  # seconds
GROWTH, SHORTEST = 0.03, 60  # of memory, which is judged if there are so many samples of the last life
CACHE_MEMORY = "64MiB"  # full within seconds: what grows after that is a leak
LENGTH, TURNS, PATIENCE = 40, 4, 120.0
SUBJECTS = (
    "a hacker",
    "a kluge",
    "a daemon",
    "cruft",
    "a wizard",
    "a glitch",
    "the core dump",
    "foo",
    "a luser",
    "hack mode",
    "an Easter egg",
    "a flame",
)
OPENINGS = ("What is {}?", "{} is", "Tell me about {}.", "When they saw {}, the hackers said that")
LARGE = 3 << 20  # bytes of a body that is too large
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
RIGHT, ROUNDING, CUT, BUSY = "right", "right but for rounding", "cut off by a kill", "told to wait"
WRONG, UNEXPECTED, LOST = "WRONG", "UNEXPECTED", "LOST"
OUTCOMES = (RIGHT, ROUNDING, BUSY, CUT, WRONG, UNEXPECTED, LOST)
BAD = (WRONG, UNEXPECTED, LOST)


@dataclass(frozen=True)
class Question:
    """A greedy request, and its answer when nobody else is there."""

    body: dict
    text: str

    @property
    def path(self):
        return "/v1/chat/completions" if "messages" in self.body else "/v1/completions"


def questions(alone, count, length=LENGTH):
    """Some completions and conversations of several turns, answered by the worker `alone`."""
    found = []
    for number in range(count):
        opening = OPENINGS[number % len(OPENINGS)].format(SUBJECTS[number // len(OPENINGS) % len(SUBJECTS)])
        if number % 2:
            bodies = [{"prompt": opening * (1 + number % 7)}]
        else:
            bodies = [{"messages": [{"role": "user", "content": opening}]}]
        for turn in range(3 if number % 4 == 0 else 1):
            body = {**bodies[-1], "max_tokens": length, "temperature": 0}
            found.append(Question(body, alone.ask(json.dumps(body))["text"]))
            if turn < 2 and "messages" in body:
                said = {"role": "assistant", "content": found[-1].text or "Yes."}
                then = {"role": "user", "content": f"And what else? {turn}"}
                bodies.append({"messages": [*body["messages"], said, then]})
    return found


@dataclass
class Session:
    """A conversation that the server keeps. script: its number. turn: how many are over. tokens: that it has, as the
    server says. certain: whether it is known how many turns are over.
    """

    script: int
    id: str = "new"
    turn: int = 0
    tokens: int = 0
    certain: bool = True


class Tally:
    """How often each kind of client met each outcome, and what was said of the bad ones."""

    def __init__(self):
        self.counts, self.said = collections.Counter(), []

    def add(self, kind, outcome, said=""):
        self.counts[kind, outcome] += 1
        if outcome in BAD and len(self.said) < 20:
            self.said.append(f"{kind}, {outcome}: {said}")

    def total(self, *outcomes):
        return sum(count for (_, outcome), count in self.counts.items() if outcome in outcomes)

    def table(self):
        """Lines of a table: a row a kind, a column an outcome."""
        kinds = sorted({kind for kind, _ in self.counts})
        yield f"{'':24}" + "".join(f"{outcome:>24}" for outcome in OUTCOMES)
        for kind in kinds:
            yield f"{kind:24}" + "".join(f"{self.counts[kind, outcome]:24}" for outcome in OUTCOMES)


class Soak:
    """The load. served: a `Served`. alone: a worker `peer_alone`. pool: `Question`s. clients: how many ask at once.
    kills: shares of the time, after which the server is killed. scripts: how many sessions differ.
    """

    def __init__(self, served, alone, pool, clients=24, kills=KILLS, scripts=8, seed=0):
        self._served, self._alone, self._pool, self._clients, self._shares = served, alone, pool, clients, kills
        self._random, self.tally = random.Random(seed), Tally()
        self._kills, self._is_up, self._asking = 0, asyncio.Event(), threading.Lock()
        self._scripts = [
            [self._random.choice(OPENINGS).format(self._random.choice(SUBJECTS)) for _ in range(TURNS)]
            for _ in range(scripts)
        ]
        self._answers = []  # of each script, the texts when nobody else is there
        self._open, self._parked = [], []  # `Session`s that go on, and that wait until the end
        self.memory = []  # megabytes, every SAMPLE seconds of the server's present life
        self._kinds = {
            self._greedy: 10,
            self._sampled: 4,
            self._several: 1,
            self._vanishing: 3,
            self._slow: 1,
            self._no_request: 2,
            self._no_http: 1,
            self._oversized: 1,
            self._looking: 1,
        }
        if scripts:
            self._kinds[self._session] = 4

    async def run(self, seconds):
        """Bear it for so long."""
        self._is_up.set()
        await self._begin_sessions()
        self._began, self._until = time.perf_counter(), time.perf_counter() + seconds
        clients = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        watching = asyncio.create_task(self._watch())
        for share in self._shares:
            await asyncio.sleep(self._began + share * seconds - time.perf_counter())
            await self._kill()
        await asyncio.gather(*clients)
        watching.cancel()
        for session in [*self._parked, *self._open]:
            await self._one("session, at the end", functools.partial(self._turn, session))
        await self._one("rows left", self._rows_left)

    async def _rows_left(self):
        """Whoever has gone holds no row."""
        for _ in range(100):
            health = (await ask(self._served.address, "/health")).json
            if not health["running"] + health["waiting"]:
                return RIGHT, ""
            await asyncio.sleep(0.1)
        return UNEXPECTED, str(health)

    async def _client(self):
        kinds, weights = list(self._kinds), list(self._kinds.values())
        while time.perf_counter() < self._until:
            await self._is_up.wait()
            (kind,) = self._random.choices(kinds, weights)
            await self._one(kind.__name__.strip("_").replace("_", " "), kind)

    async def _one(self, name, kind):
        """One request. What a kill has cut off is no fault."""
        kills = self._kills
        try:
            outcome, said = await asyncio.wait_for(kind(), PATIENCE)
        except ConnectionError as error:
            outcome, said = UNEXPECTED, repr(error)
        except TimeoutError:
            outcome, said = UNEXPECTED, f"no answer in {PATIENCE:.0f} s"
        if outcome in BAD and self._kills != kills:
            outcome = CUT
        self.tally.add(name, outcome, said)
        if outcome == BUSY:
            await asyncio.sleep(0.5)

    async def _kill(self):
        """Kill the server and start it again."""
        self._is_up.clear()
        self._kills += 1
        await asyncio.to_thread(self._served.kill)
        await asyncio.to_thread(self._served.start)
        self.memory = []
        self._is_up.set()

    async def _watch(self):
        while True:
            if self._is_up.is_set():
                self.memory.append(self._served.resident_megabytes())
            await asyncio.sleep(SAMPLE)

    def growth(self):
        """How much more memory the server has in the last third of its last life than in the first, as a share."""
        third = len(self.memory) // 3
        return median(self.memory[-third:]) / median(self.memory[:third]) - 1

    async def _greedy(self):
        question, streams = self._random.choice(self._pool), self._random.random() < 0.5
        reply = await ask(self._served.address, question.path, question.body | {"stream": streams})
        return await self._judged(question, reply)

    async def _slow(self):
        """Who reads a stream slowly holds nobody up, and gets all of it."""
        question = self._random.choice(self._pool)
        reply = await ask(self._served.address, question.path, question.body | {"stream": True}, pause=0.2)
        return await self._judged(question, reply)

    async def _judged(self, question, reply):
        """The outcome of a reply to a question."""
        if (outcome := _received(reply)) != RIGHT:
            return outcome, _said(reply)
        text = reply.texts.get(0, "")
        if text == question.text:
            return RIGHT, ""
        near = await asyncio.to_thread(self._alone_near, question.body | {"text": text})
        return (ROUNDING if near else WRONG), f"{question.body}: {text!r}, and alone {question.text!r}"

    def _alone_near(self, asked):
        with self._asking:
            return self._alone.ask(json.dumps(asked))["near"]

    async def _begin_sessions(self):
        """What sessions are answered when nobody else is there, and some that are gone on with at the end."""
        for script, said in enumerate(self._scripts):
            session, texts = Session(script), []
            for content in said:
                reply = await self._said(session, content)
                texts.append(reply.texts[0])
                session.id = reply.last("session_id")
            self._answers.append(texts)
        for script in range(len(self._scripts)):
            self._parked.append(Session(script))
            outcome, why = await self._turn(self._parked[-1])
            if outcome != RIGHT:
                raise RuntimeError(f"The same session again: {outcome}, {why}")

    async def _said(self, session, content):
        """The reply to what is said in a session."""
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "session_id": session.id, "temperature": 0, "max_tokens": LENGTH}
        body["stream"] = self._random.random() < 0.5
        return await ask(self._served.address, "/v1/chat/completions", body)

    async def _session(self):
        """Go on with a session, or begin one."""
        fresh = len(self._open) < len(self._scripts) // 2
        session = Session(self._random.randrange(len(self._scripts))) if fresh else self._open.pop(0)
        outcome = None
        try:
            outcome, said = await self._turn(session)
            return outcome, said
        finally:
            if session.turn < TURNS and outcome != LOST:
                self._open.append(session)

    async def _turn(self, session):
        """One turn of a session, which is there afterwards, whatever happens, and is deleted after the last one."""
        if not session.certain and not await self._caught_up(session):
            return LOST, f"{session} is not there"
        if session.turn == TURNS:
            return RIGHT, ""
        session.certain = False
        reply = await self._said(session, self._scripts[session.script][session.turn])
        if (outcome := _received(reply)) != RIGHT:
            session.certain = outcome == BUSY
            return (LOST if reply.status == 404 else outcome), f"{session}: {_said(reply)}"
        session.id = reply.last("session_id")
        if not await self._caught_up(session):
            return LOST, f"{session} is not there"
        text, wanted = reply.texts.get(0, ""), self._answers[session.script][session.turn - 1]
        if session.turn == TURNS:
            await ask(self._served.address, f"/v1/states/{session.id}", method="DELETE")
        return (RIGHT if text == wanted else WRONG), f"{session}: {text!r}, and before {wanted!r}"

    async def _caught_up(self, session):
        """Ask the server how far a session is. Returns whether it is there."""
        if session.id == "new":  # nobody was told that it is kept
            session.certain = True
            return True
        reply = await ask(self._served.address, f"/v1/states/{session.id}")
        if reply.status == 404:
            return False
        tokens = reply.json["tokens"]
        session.turn += tokens > session.tokens
        session.tokens, session.certain = tokens, True
        return True

    async def _sampled(self):
        question = self._random.choice(self._pool)
        drawn = {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.2, "stream": self._random.random() < 0.5}
        reply = await ask(self._served.address, question.path, question.body | drawn)
        return _received(reply), _said(reply)

    async def _several(self):
        question = self._random.choice(self._pool)
        reply = await ask(self._served.address, question.path, question.body | {"n": 3, "temperature": 1.0})
        outcome = _received(reply)
        return (UNEXPECTED if outcome == RIGHT and len(reply.texts) != 3 else outcome), _said(reply)

    async def _vanishing(self):
        """Who hangs up in the middle, or before anything came."""
        question, after = self._random.choice(self._pool), self._random.choice([0.0, 0.02, 0.2, 1.0])
        body = question.body | {"stream": self._random.random() < 0.7, "max_tokens": 1000}
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ask(self._served.address, question.path, body), after)
        return RIGHT, ""

    async def _no_request(self):
        path = self._random.choice(["/v1/completions", "/v1/chat/completions"])
        return _refused(await ask(self._served.address, path, self._random.choice(NO_REQUESTS)))

    async def _no_http(self):
        return _refused(await exchanged(self._served.address, self._random.choice(NO_HTTP)))

    async def _oversized(self):
        body = json.dumps({"prompt": "a" * LARGE}).encode()
        return _refused(await ask(self._served.address, "/v1/completions", body))

    async def _looking(self):
        path = self._random.choice(["/health", "/v1/models", "/nowhere"])
        reply = await ask(self._served.address, path)
        return (RIGHT if reply.status in (200, 404) else UNEXPECTED), _said(reply)


def _received(reply):
    """What became of a request that there is nothing wrong with."""
    if reply.status == 429:
        return BUSY
    return RIGHT if reply.status == 200 and reply.is_whole else UNEXPECTED


def _refused(reply):
    """The outcome of a request that is to be refused."""
    return (RIGHT if 400 <= reply.status < 500 else UNEXPECTED), _said(reply)


def _said(reply):
    return f"status {reply.status}, {reply.arrivals[-1:]}"


def arguments(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--model", default="finch-jargon", help="as for `serve` (finch-jargon)")
    parser.add_argument("--clients", type=int, default=24, help="who ask at once (24)")
    parser.add_argument("--questions", type=int, default=48, help="texts that are asked for, of which some go on (48)")
    parser.add_argument("--seed", type=int, default=0, help="of who asks what (0)")
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    alone = Worker("alone", "peer_alone", [options.model], {"KERAS_BACKEND": "jax"})
    pool = questions(alone, options.questions)
    with tempfile.TemporaryDirectory() as folder:
        kept = ["--cache", folder, "--cache-memory", CACHE_MEMORY]
        with Served(ours(options.model, *kept), environment={"KERAS_BACKEND": "jax"}) as served:
            soak = Soak(served, alone, pool, options.clients, seed=options.seed)
            asyncio.run(soak.run(60 * options.minutes))
            served.stop()
    alone.kill()
    return reported(soak)


def reported(soak):
    """Print what came of it. Returns 1 if anything is wrong, else 0."""
    print(*soak.tally.table(), *soak.tally.said, sep="\n")
    bad = soak.tally.total(*BAD)
    if len(soak.memory) >= SHORTEST:
        growth = soak.growth()
        bad += growth > GROWTH
        print(f"Memory, last third of the last life against the first: {growth:+.1%}; at most {GROWTH:.0%} is right.")
    else:
        print("The last life was too short to judge how memory grows.")
    print(f"{soak.tally.total(*OUTCOMES)} requests. {'Something is wrong.' if bad else 'All is right.'}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
