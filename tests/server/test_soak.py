"""Mixed load on the server, and that what would be wrong there is seen."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from unittest.mock import ANY

import pytest

from benchmarks.http_load import Address, Reply, ask
from benchmarks.peer_alone import Alone
from benchmarks.soak.__main__ import reported
from benchmarks.soak.clients import Clients
from benchmarks.soak.load import Load
from benchmarks.soak.outcomes import BAD, LOST, RIGHT, ROUNDING, UNEXPECTED, WRONG, Tally
from benchmarks.soak.questions import questions
from benchmarks.soak.sessions import Sessions
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, Remembering, begin_service
from tests.server.loopback import listening
from tests.server.models import endless

pytestmark = pytest.mark.on("jax")
ROOT = Path(__file__).resolve().parents[2]


class Here:
    """The server of this process, as a load looks at one."""

    def __init__(self, address):
        self.address = Address(*address)

    def resident_megabytes(self):
        return 1.0


@pytest.fixture(scope="module")
def rwkv():
    return endless()


@pytest.fixture(scope="module")
def alone(rwkv):
    return Alone(rwkv)


@pytest.fixture(scope="module")
def served(rwkv, tmp_path_factory):
    remembering = Remembering(folder=tmp_path_factory.mktemp("cache"), memory=1 << 16)
    service = begin_service(rwkv, limits=Limits(max_batch=4), remembering=remembering)
    with listening(make_app(service)) as address:
        yield Here(address)


@pytest.fixture(scope="module")
def pool(alone):
    return questions(alone, 16)


def test_whoever_comes_and_goes_all_answers_are_right(served, alone, pool):
    """Fifteen seconds of it, without kills."""
    load = Load(served, alone, pool, count=12, kills=(), scripts=4)
    asyncio.run(load.run(15))
    assert not load.tally.total(*BAD), load.tally.said
    kinds = {kind for kind, outcome in load.tally.counts if outcome == RIGHT}
    assert kinds == {*load.kinds, "session, at the end", "rows left"}


def test_a_wrong_answer_is_seen(served, alone, pool):
    clients, question = Clients(served, alone, pool, Random(0)), next(one for one in pool if len(one.text) > 10)

    def outcome(question, reply):
        return asyncio.run(clients.judged(question, reply))[0]

    reply = asyncio.run(ask(served.address, question.path, question.body))
    assert outcome(question, reply) == RIGHT
    assert outcome(replace(question, text="?"), reply) == ROUNDING  # for it is what the model writes
    other = asyncio.run(ask(served.address, question.path, question.body | {"temperature": 2.0, "seed": 1}))
    assert outcome(question, other) == WRONG
    (when, data), *_ = reply.arrivals
    assert outcome(question, Reply(reply.sent, [(when, data[:-1])])) == UNEXPECTED


def test_a_lost_session_is_seen(served):
    sessions = Sessions(served, 2, Random(0))

    async def lose():
        await sessions.begin()
        session = sessions.parked[0]
        assert await sessions.turn(session) == (RIGHT, ANY)
        await ask(served.address, f"/v1/states/{session.id}", method="DELETE")
        return await sessions.turn(session)

    assert asyncio.run(lose()) == (LOST, ANY)


@pytest.mark.backend_free
def test_memory_that_grows_is_seen(capsys):
    tally, flat = Tally(), [100.0] * 20 + [200.0] * 20
    tally.add("greedy", RIGHT)
    assert reported(tally, [*flat, *[102.0] * 20]) == 0 and "+2.0%" in capsys.readouterr().out
    assert reported(tally, [*flat, *[104.0] * 20]) == 1 and "+4.0%" in capsys.readouterr().out


@pytest.mark.slow
def test_two_minutes_with_two_kills(tmp_path):
    """The program itself, on the model that ships."""
    environment = {**os.environ, "BERT4KERAS_RWKV_CACHE": str(tmp_path)}  # what a start compiles is there at the next
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Memory" in done.stdout
