"""From the scheduler's thread to a coroutine: the events of all the answers of one response."""

import asyncio
import collections
import dataclasses
import weakref

from bert4keras_rwkv.server.asked import Piece


class Bells:
    """The `Bell` of each event loop."""

    def __init__(self):
        self._bells = weakref.WeakKeyDictionary()

    def of(self, loop):
        """That of one loop."""
        return self._bells.setdefault(loop, Bell())


class Bell:
    """Wakes coroutines of one event loop from another thread, all that have something at once, for waking costs."""

    def __init__(self):
        self._rung, self._going = collections.deque(), False

    def ring(self, loop, event):
        """Have `event.set()` called in the loop, which is always the same."""
        self._rung.append(event)
        if not self._going:
            self._going = True
            loop.call_soon_threadsafe(self._wake)

    def _wake(self):
        self._going = False  # what is rung from here on is seen below, or wakes anew
        while self._rung:
            self._rung.popleft().set()


class Listening:
    """The events of several `Asked`, numbered through. Leave it, and nothing more of them is written.

    Made inside a coroutine. bells: shared by all. timed: makes of a `deliver` one that also measures
    (`Metrics.timed`). Raises what `Scheduler.submit` raises, and then nothing of it is written.
    """

    def __init__(self, scheduler, several, bells, timed):
        self._loop, self._some = asyncio.get_running_loop(), asyncio.Event()
        self._bell = bells.of(self._loop)
        self._events, self._tickets = collections.deque(), []
        self.answers = sum(asked.answers for asked in several)
        self.read = sum(len(asked.ids) for asked in several)  # tokens of the prompts
        self._prompts = [number for number, asked in enumerate(several) for _ in range(asked.answers)]
        first = 0
        try:
            for asked in several:
                self._tickets.append(scheduler.submit(asked, timed(self._deliver_from(first))))
                first += asked.answers
        except Exception:
            self.leave()
            raise

    def _deliver_from(self, first):
        def deliver(event):
            self._events.append(dataclasses.replace(event, answer=first + event.answer))
            self._bell.ring(self._loop, self._some)

        return deliver

    def prompt_of(self, answer):
        """The number of the prompt of an answer."""
        return self._prompts[answer]

    async def events(self):
        """All of them, until each answer has ended. Pieces of an answer that wait together come as one."""
        left = self.answers
        while left:
            await self._some.wait()
            self._some.clear()
            for event in self._waiting():
                left -= not isinstance(event, Piece)
                yield event

    def _waiting(self):
        """What waits now, a list."""
        pieces, others = {}, []
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Piece):
                pieces.setdefault(event.answer, []).append(event)
            else:
                others.append(event)
        return [*map(_joined, pieces.values()), *others]

    def leave(self):
        """Nobody listens any more."""
        for ticket in self._tickets:
            ticket.leave()


def _joined(pieces):
    """Pieces of one answer as one."""
    if len(pieces) == 1:
        return pieces[0]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(pieces[0].answer, "".join(piece.text for piece in pieces), tokens)
