"""Many clients at once on a server that is killed now and then."""

import asyncio
import functools
import random
import time
from statistics import median

from ..http_load import ask
from .clients import Clients
from .outcomes import BAD, BUSY, CUT, RIGHT, UNEXPECTED, Tally
from .sessions import Sessions

KILLS = (0.1, 0.2)
PATIENCE = 120.0  # seconds that an answer may take
SAMPLE = 1.0  # seconds between two looks at the memory
SESSIONS = 4  # clients of this kind, beside the others


class Load:
    """The load. served: a `Served`. alone: a worker `peer_alone`. pool: `Question`s. count: clients at once. kills:
    shares of the time, after which the server is killed. scripts: how many sessions differ, 0 for no sessions.

    tally: a `Tally`. memory: megabytes, every SAMPLE seconds of the server's present life.
    """

    def __init__(self, served, alone, pool, count=24, kills=KILLS, scripts=8, seed=0):
        self._served, self._count, self._shares, self._random = served, count, kills, random.Random(seed)
        self._sessions = Sessions(served, scripts, self._random)
        self.kinds = Clients(served, alone, pool, self._random).kinds
        if scripts:
            self.kinds["session"] = self._sessions.one, SESSIONS
        self._kills, self._is_up = 0, asyncio.Event()
        self.tally, self.memory = Tally(), []

    async def run(self, seconds):
        """Bear it for so long, and look at what is left then."""
        self._is_up.set()
        await self._sessions.begin()
        began = time.perf_counter()
        clients = [asyncio.create_task(self._client(began + seconds)) for _ in range(self._count)]
        watching = asyncio.create_task(self._watch())
        for share in self._shares:
            await asyncio.sleep(began + share * seconds - time.perf_counter())
            await self._kill()
        await asyncio.gather(*clients)
        watching.cancel()
        for session in [*self._sessions.parked, *self._sessions.going]:
            await self._one("session, at the end", functools.partial(self._sessions.turn, session))
        await self._one("rows left", self._rows_left)

    async def _client(self, until):
        names, weights = list(self.kinds), [weight for _, weight in self.kinds.values()]
        while time.perf_counter() < until:
            await self._is_up.wait()
            (name,) = self._random.choices(names, weights)
            await self._one(name, self.kinds[name][0])

    async def _one(self, name, client):
        """One request. What a kill has cut off is no fault."""
        kills = self._kills
        try:
            outcome, said = await asyncio.wait_for(client(), PATIENCE)
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

    async def _rows_left(self):
        """Whoever has gone holds no row."""
        for _ in range(100):
            health = (await ask(self._served.address, "/health")).json
            if not health["running"] + health["waiting"]:
                return RIGHT, ""
            await asyncio.sleep(0.1)
        return UNEXPECTED, str(health)


def growth(memory):
    """How much more memory there is in the last third of some samples than in the first, as a share of that."""
    third = len(memory) // 3
    return median(memory[-third:]) / median(memory[:third]) - 1
