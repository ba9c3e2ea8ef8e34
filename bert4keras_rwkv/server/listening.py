"""From the scheduler's thread to a coroutine: the events of all the answers of one response."""

import asyncio
import dataclasses

from bert4keras_rwkv.server.scheduler import Piece


class Listening:
    """The events of several `Asked`, numbered through. Leave it, and nothing more of them is written.

    timed: makes of a `deliver` one that also measures (`Metrics.timed`). Made inside a coroutine. Raises what
    `Scheduler.submit` raises, and then nothing of it is written.
    """

    def __init__(self, scheduler, several, timed):
        self._loop, self._events, self._tickets = asyncio.get_running_loop(), asyncio.Queue(), []
        self.answers = sum(len(asked.seeds) for asked in several)
        self.read = sum(len(asked.ids) for asked in several)  # tokens of the prompts
        first = 0
        try:
            for asked in several:
                self._tickets.append(scheduler.submit(asked, timed(self._deliver_from(first))))
                first += len(asked.seeds)
        except Exception:
            self.leave()
            raise

    def _deliver_from(self, first):
        def deliver(event):
            numbered = dataclasses.replace(event, answer=first + event.answer)
            self._loop.call_soon_threadsafe(self._events.put_nowait, numbered)

        return deliver

    async def events(self):
        """All of them, until each answer has ended."""
        left = self.answers
        while left:
            event = await self._events.get()
            left -= not isinstance(event, Piece)
            yield event

    def leave(self):
        """Nobody listens any more."""
        for ticket in self._tickets:
            ticket.leave()
