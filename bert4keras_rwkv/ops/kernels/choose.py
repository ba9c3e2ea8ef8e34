"""Which form of a recurrence runs: the plain loop, pure Keras ops, or a native kernel."""

import functools
import logging
import os

KERNELS = ("auto", "ops", "native", "loop")


def check_kernel(kernel):
    """Return `kernel`, or raise a ValueError that names the known ones."""
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` is one of {', '.join(map(repr, KERNELS))}. Received: kernel={kernel!r}.")
    if kernel == "native":
        raise ValueError("This version has no native kernels. Use kernel='ops' (chunked, on every device).")
    return kernel


def chosen(kernel="auto"):
    """'loop' or 'ops' for an argument of 'auto', 'ops' or 'loop'.

    'auto' asks the environment variable OPS_KERNEL when it is called: 1 is pure Keras ops; 0, the default, a native
    kernel where one serves the device. There is none yet, so pure ops run, which is said once in the log.
    """
    if check_kernel(kernel) != "auto":
        return kernel
    wanted = os.environ.get("OPS_KERNEL", "0")
    if wanted not in ("0", "1"):
        raise ValueError(
            f"OPS_KERNEL is 0 (native kernels where there are some) or 1 (pure ops). Received: {wanted!r}."
        )
    if wanted == "0":
        _say_once()
    return "ops"


@functools.cache
def _say_once():
    logging.getLogger("bert4keras_rwkv").info("No native kernel for this device: pure Keras ops run.")
