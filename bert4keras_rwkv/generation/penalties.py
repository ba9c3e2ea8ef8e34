"""Penalties for tokens that occurred before, in two dialects.

Both are computed anew at each step from the tokens of the buffer: nothing the size of the vocabulary is carried along.
"""

import numpy as np

from bert4keras_rwkv.keras_loader import ops


def penalise_repetition(logits, ids, position, penalty, window, count_range=None):
    """CTRL's penalty (arXiv 1909.05858), as bert4keras3 counts: logit / penalty^n above 0, logit * penalty^n otherwise.

    n is 1 for a token in the window; with count_range (low, high) it is min(count, high) if count >= low, else 0.
    The window of position `index`, the one to be written, is its own block of `window` positions and the one before.

    logits: (B, V) float32. ids: (B, L) int32, position: (B,) int32: tokens before `position` are real, what follows is
    ignored, whatever number it is. penalty: (B,) float32. window: (B,) int32. Returns (B, V).
    """
    ids = _known(ids, logits)
    position, window = ops.expand_dims(position, 1), ops.expand_dims(window, 1)
    at = ops.expand_dims(ops.arange(ids.shape[1], dtype="int32"), 0)
    seen = ops.logical_and(at < position, at >= _window_start(position, window))
    count = _count(ids, ops.cast(seen, "float32"), logits)
    if count_range is None:
        times = ops.minimum(count, 1.0)
    else:
        low, high = count_range
        times = ops.where(count >= low, ops.minimum(count, float(high)), 0.0)
    factor = ops.power(ops.expand_dims(penalty, 1), times)
    logit = _at_ids(logits, ids)
    return _replace(logits, ids, ops.where(logit > 0, logit / factor, logit * factor))


def penalise_frequency(logits, ids, start, position, presence, frequency, decay, free=()):
    """The penalty of the `rwkv` package: logit -= presence + count * frequency for each generated token.

    Counts fade: a token generated d steps ago counts decay^d, so the last one counts 1. The ids in `free` count 0, but
    presence applies to them.

    logits, ids, position: as for `penalise_repetition`. start: (B,) int32, the first generated position.
    presence, frequency, decay: (B,) float32. Returns (B, V).
    """
    ids = _known(ids, logits)
    start, position, presence, frequency, decay = (
        ops.expand_dims(x, 1) for x in (start, position, presence, frequency, decay)
    )
    at = ops.expand_dims(ops.arange(ids.shape[1], dtype="int32"), 0)
    generated = ops.logical_and(at >= start, at < position)
    age = ops.cast(ops.where(position - 1 > at, position - 1 - at, 0), "float32")
    weight = ops.where(generated, ops.power(decay, age), 0.0)
    if free:
        weight = ops.where(ops.take(_are(free, logits), ids, axis=0), 0.0, weight)
    count = _count(ids, weight, logits)
    present = ops.minimum(_count(ids, ops.cast(generated, "float32"), logits), 1.0)
    return _replace(logits, ids, _at_ids(logits, ids) - (presence * present + frequency * count))


def forbid(logits, ids):
    """Set the logits of `ids`, a tuple of ints, to -inf. logits: (B, V)."""
    return ops.where(_are(ids, logits), -float("inf"), logits)


def pace(logits, written, newline):
    """ChatRWKV's soft length: what is added to the logit of a line feed, with so many tokens of the answer written.

    Nothing is one first: -inf at 0. Up to `short` (written - short) / 10 is added, from `long` on
    min(3, (written - long) / 4), between them nothing.

    logits: (B, V) float32. written: (B,) int32. newline: (B, 3) int32: id, short, long. Returns (B, V).
    """
    token, short, long = newline[:, :1], newline[:, 1:2], newline[:, 2:]
    count = ops.expand_dims(written, 1)
    early = ops.cast(ops.minimum(count - short, 0), "float32") / 10.0
    late = ops.minimum(ops.cast(ops.maximum(count - long, 0), "float32") / 4.0, 3.0)
    added = ops.where(count > 0, early + late, -float("inf"))
    at = ops.expand_dims(ops.arange(logits.shape[-1], dtype="int32"), 0)
    return ops.where(ops.equal(at, token), logits + added, logits)


def forbid_again(logits, last, ids):
    """Set the logit of each row's last token to -inf where it is one of `ids`.

    logits: (B, V). last: (B,) int32. ids: (B, N) int32, -1 for none. Returns (B, V).
    """
    last = ops.expand_dims(last, 1)
    banned = ops.any(ops.equal(last, ids), axis=1, keepdims=True)
    at = ops.expand_dims(ops.arange(logits.shape[-1], dtype="int32"), 0)
    return ops.where(ops.logical_and(banned, ops.equal(at, last)), -float("inf"), logits)


def _known(ids, logits):
    """Ids that are rows of the vocabulary, for what fills a buffer may be none: it counts nothing, but has a place."""
    return ops.clip(ids, 0, logits.shape[-1] - 1)


def _window_start(position, window):
    block = position // window
    return ops.where(block > 0, block - 1, 0) * window


def _are(ids, logits):
    """(V,) bool: the ids that are among `ids`, a constant of the program."""
    among = np.zeros(logits.shape[-1], "bool")
    among[list(ids)] = True
    return ops.convert_to_tensor(among)


def _flat(ids, logits):
    """The places of ids (B, L) in the flattened logits, (B * L, 1)."""
    rows = ops.expand_dims(ops.arange(ops.shape(ids)[0], dtype="int32"), 1)
    return ops.reshape(rows * logits.shape[-1] + ids, (-1, 1))


def _count(ids, weight, logits):
    """The summed weight of each id at every place where it stands. ids, weight: (B, L). Returns (B, L)."""
    empty = ops.reshape(ops.zeros_like(logits), (-1,))
    total = ops.scatter_update(empty, _flat(ids, logits), ops.reshape(weight, (-1,)), reduction="add")
    return ops.take_along_axis(ops.reshape(total, (-1, logits.shape[-1])), ids, axis=1)


def _at_ids(logits, ids):
    return ops.take_along_axis(logits, ids, axis=1)


def _replace(logits, ids, new):
    """Write `new` (B, L) at `ids` (B, L). Where an id stands twice, both values are the same."""
    flat = ops.scatter_update(ops.reshape(logits, (-1,)), _flat(ids, logits), ops.reshape(new, (-1,)))
    return ops.reshape(flat, (-1, logits.shape[-1]))
