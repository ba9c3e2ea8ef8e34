"""Memory that is free goes back to the system: glibc keeps it, in pieces between others, and grows by the hour."""

import asyncio
import ctypes
import sys

from fastapi.concurrency import run_in_threadpool

EVERY = 10.0  # seconds


def give_back():
    """Give free memory back, where the C library can: glibc's, on Linux."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


async def give_back_for_ever():
    """Do so every few seconds, until it is cancelled."""
    while True:
        await asyncio.sleep(EVERY)
        await run_in_threadpool(give_back)
