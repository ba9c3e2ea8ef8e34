"""uvicorn, stopped with nobody cut off: what runs is finished, or told that it is not."""

import asyncio
import logging

import uvicorn

from bert4keras_rwkv.server.heads import BoundedHeads

logger = logging.getLogger("bert4keras_rwkv")
TELLING = 5  # seconds that slow readers have for the end of their answers


class GracefulServer(uvicorn.Server):
    """Once told to stop, it accepts nothing more and finishes what was asked for within `limit` seconds. Answers that
    are longer end with an error. options: of `uvicorn.Config`.
    """

    def __init__(self, app, scheduler, limit, **options):
        super().__init__(uvicorn.Config(app, http=BoundedHeads, timeout_graceful_shutdown=limit + TELLING, **options))
        self._scheduler, self._limit = scheduler, limit

    async def shutdown(self, sockets=None):
        """Called by uvicorn in its event loop."""
        waiting = self._scheduler.running + self._scheduler.waiting
        if waiting:
            logger.warning("Stopping: %d answers are finished first, for %d seconds at most.", waiting, self._limit)
        stopped = asyncio.create_task(asyncio.to_thread(self._scheduler.stop, self._limit))
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C
            await asyncio.to_thread(self._scheduler.stop, 0.0)
        await stopped
