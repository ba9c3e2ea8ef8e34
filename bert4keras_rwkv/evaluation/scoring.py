"""Many passages, each read whole from its beginning, several at a time."""

from itertools import islice
from typing import NamedTuple

import numpy as np

BATCHES_AHEAD = 32  # how many batches of passages are sorted by length at a time
FEWER = 4  # rows are read so many times fewer when no more are left


class Passage(NamedTuple):
    """Token ids to read, and those of them that are asked for.

    ids: (T,) int32. counts: (T,) bool; the first is always False, for nothing comes before it. place: for errors.
    """

    ids: np.ndarray
    counts: np.ndarray
    place: str = "A passage"


class Found(NamedTuple):
    """What a model made of the tokens of a passage that count: log-probabilities in nats (n,) float64, and whether each
    was the likeliest token (n,) bool.
    """

    log_p: np.ndarray
    likeliest: np.ndarray


def passage(parts, place="A passage"):
    """A `Passage` of parts, (ids, whether they are asked for): a bool for all of them, or for each."""
    ids = np.concatenate([np.asarray(part, np.int32) for part, _ in parts])
    counts = np.concatenate([np.broadcast_to(np.asarray(asked, bool), len(part)) for part, asked in parts])
    counts[:1] = False
    return Passage(ids, counts, place)


def score_passages(rwkv, passages, batch_size=8, chunk_len=256, state=None, progress=None):
    """Yield the `Found` of each `Passage`, in order.

    passages: any iterable; a few batches are read ahead, so that those of similar length are read together. batch_size,
    chunk_len: passages, and tokens of each, that are read at once; the result does not depend on them but for rounding,
    and memory does not depend on the length of a text. state: RWKVState of one row in which every passage begins, None
    for the tuned one, or zero. progress: called with how many passages and tokens a batch had, when it is read.

    Raises:
        ValueError: the model computes what is no number: where.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is how many texts are read at once, at least 1. Received: {batch_size}.")
    passages = iter(passages)
    while window := list(islice(passages, BATCHES_AHEAD * batch_size)):
        order, found = sorted(range(len(window)), key=lambda i: -len(window[i].ids)), {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [window[i] for i in chosen]
            found.update(zip(chosen, _score_batch(rwkv, batch, batch_size, chunk_len, state), strict=True))
            if progress is not None:
                progress(len(batch), sum(len(one.ids) for one in batch))
        yield from (found[i] for i in range(len(window)))


def _score_batch(rwkv, batch, rows, chunk_len, state):
    """The `Found` of some passages, the longest first. rows: of what is read at first, quartered as passages end.

    Few shapes are read, for each may cost a compilation: fewer rows always have whole pieces.
    """
    most = rows
    log_p, likeliest = ([np.zeros(len(one.ids), kind) for one in batch] for kind in (np.float64, bool))
    for start in range(0, len(batch[0].ids) - 1, chunk_len):
        live = sum(len(one.ids) - 1 > start for one in batch)
        while rows // FEWER >= live:
            rows //= FEWER
        if start and state.batch > rows:
            state = state[:rows]
        longest = chunk_len if rows < most else min(chunk_len, len(batch[0].ids) - 1 - start)
        ids, targets, present = _piece(batch[:live], start, longest, rows)
        values, hits, state = rwkv.score(ids, targets, state, present, chunk_len)
        for row in range(live):
            there = slice(start + 1, start + 1 + chunk_len)
            size = len(log_p[row][there])
            log_p[row][there], likeliest[row][there] = values[row, :size], hits[row, :size]
    return [_counted(*one) for one in zip(batch, log_p, likeliest, strict=True)]


def _piece(batch, start, longest, rows):
    """ids, targets and present (rows, longest) of the passages' tokens from `start` on."""
    ids, targets = np.zeros((2, rows, longest), np.int32)
    present = np.zeros((rows, longest), bool)
    for row, one in enumerate(batch):
        part = one.ids[start : start + longest + 1]
        size = len(part) - 1
        ids[row, :size], targets[row, :size], present[row, :size] = part[:-1], part[1:], True
    return ids, targets, present


def _counted(one, log_p, likeliest):
    """The `Found` of a passage."""
    if not np.isfinite(log_p[one.counts]).all():
        raise ValueError(
            f"{one.place}: the model computes what is no number. Does it overflow? Then compute in float32: "
            "dtype='float32', or --dtype float32."
        )
    return Found(log_p[one.counts], likeliest[one.counts])
