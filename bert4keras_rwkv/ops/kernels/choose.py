"""Which form of a recurrence runs: the plain loop, pure Keras ops, or a native kernel."""

import logging
import os

from bert4keras_rwkv.ops.backend import once_while_tracing
from bert4keras_rwkv.ops.kernels import cuda, native
from bert4keras_rwkv.ops.kernels.library import is_loaded, library
from bert4keras_rwkv.ops.kernels.native import unfit, why_not

KERNELS = ("auto", "ops", "native", "loop")
UNTRIED = (
    "No GPU has run the kernels for GPUs yet, so they run only where OPS_KERNEL is set to 0 or kernel='native'; "
    "`bert4keras-rwkv kernels --check` compares them with the loop."
)


def check_kernel(kernel, dtype=None):
    """Return `kernel`, or raise a ValueError that names the known ones, or says why none is native here.

    dtype: of the inputs, as in "float32"; None: not known.
    """
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` is one of {', '.join(map(repr, KERNELS))}. Received: kernel={kernel!r}.")
    if kernel == "native":
        chosen(kernel, dtype)
    if kernel == "auto":
        chosen(kernel, dtype)
    return kernel


def chosen(kernel="auto", dtype=None, shape=(), where=None):
    """'loop', 'ops' or 'native' for an argument that may also be 'auto', and inputs of a dtype and shape.

    where: the device on which they lie, as `backend.device_of` says.
    'auto' asks the environment variable OPS_KERNEL when it is called: 1 is pure Keras ops; 0 the native kernel where
    one serves, else pure ops; not set is the same on a CPU, and pure ops on a GPU. What runs is said in the log.
    """
    if kernel not in ("auto", "native"):
        return check_kernel(kernel)
    reason = unfit(shape, where) or _reason(kernel, dtype, where)
    if reason and kernel == "native":
        raise ValueError(f"kernel='native' was asked for, and cannot be: {reason} kernel='auto' takes pure ops then.")
    return "ops" if reason else "native"


@once_while_tracing
def _reason(kernel, dtype, where):
    """Why no native kernel runs for inputs of any shape, empty: one does. What runs for 'auto' is said in the log."""
    if kernel == "native":
        return why_not(dtype, where) or ""
    told = os.environ.get("OPS_KERNEL") or None
    if told not in (None, "0", "1"):
        raise ValueError(f"OPS_KERNEL is 0 (native kernels where there are some) or 1 (pure ops). Received: {told!r}.")
    if told == "1":
        return "OPS_KERNEL is 1."
    reason = UNTRIED if told is None and native.device(where) == "cuda" else why_not(dtype, where)
    if reason not in _said:
        _said.add(reason)
        _say(reason, where)
    return reason or ""


def native_code():
    """What names the native kernels that programs of this process may call, a part of those that are kept; None: none.

    The layers of a model that takes them, or insists, have loaded them.
    """
    return library().path.name if is_loaded() else None


_said = set()


def _say(reason, where):
    """Say in the log what runs."""
    logger = logging.getLogger("bert4keras_rwkv")
    if reason is not None:
        logger.info("The recurrences run as pure Keras ops. %s", reason)
        return
    on = cuda.device().name if native.device(where) == "cuda" else library().levels()[0]
    logger.info("The recurrences run on native kernels (%s, %s).", on, library().path)
