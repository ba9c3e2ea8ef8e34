"""From the scheduler's thread to coroutines."""

import asyncio
import threading

import pytest

from bert4keras_rwkv.server.listening import Bells

pytestmark = pytest.mark.backend_free


def test_a_loop_that_was_closed_before_it_woke_keeps_no_other_asleep():
    bells, loop = Bells(), asyncio.new_event_loop()
    bells.of(loop).ring(loop, asyncio.Event())
    loop.close()

    async def woken():
        here, event = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=bells.of(here).ring, args=(here, event)).start()
        await asyncio.wait_for(event.wait(), 5)

    asyncio.run(woken())
