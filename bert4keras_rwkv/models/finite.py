"""Where numbers stop being numbers: the first layer whose output is NaN or infinite."""

import contextlib
import functools
import threading

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.ops.compile import no_gradient

_ALONE = threading.Lock()  # the layers of a model are changed while they are watched


def not_finite_of(backbone, ids, wkv, shift, present=None):
    """Where reading tokens ceases to be finite: the path of the first layer with an output that is not, 'the state' if
    it comes in so, None if all is finite, the logits too.

    ids (B, T) int, wkv and shift: of an RWKVState of batch B. present (B, T) bool or None. Runs without graph.
    """
    if not (finite(wkv) and finite(shift)):
        return "the state"

    def read():
        state = backbone.unpack(*map(ops.convert_to_tensor, (wkv, shift)))
        there = None if present is None else ops.convert_to_tensor(present)
        backbone.logits(backbone.read(ops.convert_to_tensor(ids), state, there)[0])

    with no_gradient():
        return first_not_finite(backbone, read)


def first_not_finite(layer, run):
    """The path of the first of a layer's sublayers that gives something not finite while `run()` calls them without
    graph, None if all give numbers. Of several threads one looks at a time; what others compute meanwhile counts not.
    """
    seen = []
    with _ALONE, contextlib.ExitStack() as stack:
        for sublayer in layer._flatten_layers(include_self=False):
            stack.enter_context(_watched(sublayer, seen))
        if getattr(layer, "remat", False):
            stack.enter_context(_not_recomputed(layer))
        run()
    return next(iter(seen), None)


def finite(value):
    """Whether all numbers of an array or variable are; integers always."""
    array = np.asarray(ops.convert_to_numpy(value))
    if array.dtype.kind not in "fV":  # V: bfloat16, which NumPy does not know
        return True
    return bool(np.isfinite(array.astype("float32") if array.dtype.kind == "V" else array).all())


@contextlib.contextmanager
def _watched(layer, seen):
    """While it lasts, the layer adds its path to `seen` when an output of it is not finite."""
    call, mine = layer.call, threading.get_ident()

    @functools.wraps(call)
    def watched(*args, **kwargs):
        output = call(*args, **kwargs)
        if threading.get_ident() == mine and not all(map(finite, keras.tree.flatten(output))):
            seen.append(layer.path or layer.name)
        return output

    layer.call = watched
    with _not_recomputed(layer):
        try:
            yield
        finally:
            del layer.call


@contextlib.contextmanager
def _not_recomputed(layer):
    """While it lasts, `remat` is off, for where it is on outputs are no values."""
    recomputed = getattr(layer, "remat", False)
    if recomputed:
        layer.remat = False
    try:
        yield
    finally:
        if recomputed:
            layer.remat = True
