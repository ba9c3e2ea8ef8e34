"""Conversations that the server keeps, and that must be there after each turn, whatever happens."""

from dataclasses import dataclass

from ..http_load import ask
from .outcomes import BUSY, LOST, RIGHT, WRONG, received, said
from .questions import GREEDY, text

TURNS = 4
NEW = "new"  # as the id of a session that begins


@dataclass
class Session:
    """One conversation. script: the number of what is said. turn: how many turns are over. tokens: that it has, as the
    server says. certain: whether it is known how many turns are over.
    """

    script: int
    id: str = NEW
    turn: int = 0
    tokens: int = 0
    certain: bool = True


class Sessions:
    """Sessions of so many scripts. served: a `Served`. random: a `random.Random`.

    parked: sessions of one turn, with which nobody goes on until the end. going: those that somebody goes on with.
    """

    def __init__(self, served, scripts, random):
        self._served, self._random = served, random
        self._scripts = [[text(random.randrange(1000)) for _ in range(TURNS)] for _ in range(scripts)]
        self._answers = []  # to each script, when nobody else is there
        self.parked, self.going = [], []

    async def begin(self):
        """Learn the answers from the server, to which nobody else speaks, and park a session of each script."""
        for script, contents in enumerate(self._scripts):
            session, texts = Session(script), []
            for content in contents:
                reply = await self._said(session, content)
                if received(reply) != RIGHT:
                    raise RuntimeError(f"No session can be held: {said(reply)}")
                texts.append(reply.texts[0])
                session.id = reply.last("session_id")
            self._answers.append(texts)
            self.parked.append(Session(script))
            outcome, why = await self.turn(self.parked[-1])
            if outcome != RIGHT:
                raise RuntimeError(f"The same session once more: {outcome}, {why}")

    async def one(self):
        """A client: goes on with a session, or begins one."""
        begins = len(self.going) < len(self._scripts)
        session = Session(self._random.randrange(len(self._scripts))) if begins else self.going.pop(0)
        outcome = None
        try:
            outcome, why = await self.turn(session)
            return outcome, why
        finally:
            if session.turn < TURNS and outcome != LOST:
                self.going.append(session)

    async def turn(self, session):
        """The next turn of a session: (outcome, what to say of it). It is deleted after the last one."""
        if not session.certain and not await self._found(session):
            return LOST, f"{session} is not there"
        if session.turn == TURNS:
            return RIGHT, ""
        session.certain = False
        reply = await self._said(session, self._scripts[session.script][session.turn])
        if (outcome := received(reply)) != RIGHT:
            session.certain = outcome == BUSY
            return (LOST if reply.status == 404 else outcome), f"{session}: {said(reply)}"
        session.id = reply.last("session_id")
        if not await self._found(session):
            return LOST, f"{session} is not there"
        told, wanted = reply.texts.get(0, ""), self._answers[session.script][session.turn - 1]
        if session.turn == TURNS:
            await ask(self._served.address, f"/v1/states/{session.id}", method="DELETE")
        return (RIGHT if told == wanted else WRONG), f"{session}: {told!r}, and before {wanted!r}"

    async def _said(self, session, content):
        """The reply to what is said in a session."""
        messages = [{"role": "user", "content": content}]
        body = {**GREEDY, "messages": messages, "session_id": session.id, "stream": self._random.random() < 0.5}
        return await ask(self._served.address, "/v1/chat/completions", body)

    async def _found(self, session):
        """Ask the server how far a session is. Returns whether it is there."""
        if session.id != NEW:  # else nobody was told that it is kept
            reply = await ask(self._served.address, f"/v1/states/{session.id}")
            if reply.status == 404:
                return False
            tokens = reply.json["tokens"]
            session.turn += tokens > session.tokens
            session.tokens = tokens
        session.certain = True
        return True
