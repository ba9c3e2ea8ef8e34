"""What this machine is."""

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from bert4keras_rwkv.untrusted import shown

SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def cores():
    """The numbers of the processors that may be used, one of each core first, then the others of the same cores."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    of_core = {number: _core(number) for number in allowed}
    first = {of_core[number]: number for number in reversed(allowed)}
    return sorted(allowed, key=lambda number: (first[of_core[number]] != number, number))


def core_count():
    """How many cores may be used."""
    return len({_core(number) for number in cores()})


def _core(number):
    """What the processors of one core share."""
    with suppress(OSError):
        return Path(SIBLINGS.format(number)).read_text("ascii").strip()
    return str(number)


def description():
    """The machine in plain values."""
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_bytes": _memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def processor():
    """The name of the processor, as far as the system says it."""
    with suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory():
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def chosen_cores(threads):
    """The processors for so many threads; None: whichever there are.

    Raises:
        ValueError: there are fewer.
    """
    if threads is None or sys.platform != "linux":
        return None
    there = cores()
    if threads > len(there):
        raise ValueError(f"`threads` is at most {len(there)}, the processors there are. Received: {shown(threads)}.")
    return there[:threads]
