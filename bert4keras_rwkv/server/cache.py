"""States by the ids that they have read, in memory, then on disk, so that no text is read twice."""

import collections
import threading
from dataclasses import dataclass, replace
from typing import NamedTuple

import ml_dtypes
import numpy as np

from bert4keras_rwkv.server.disk import DiskCache
from bert4keras_rwkv.server.prefixes import Key, Prefixes, count, root
from bert4keras_rwkv.server.state_folder import Kept
from bert4keras_rwkv.state import RWKVState

DTYPES = ("float32", "bfloat16")
OWN = 1 << 10  # bytes that an entry takes beside its arrays and ids, about


@dataclass(frozen=True)
class Figures:
    """What a cache has done since it was made, and what it holds. tokens: how many did not have to be read."""

    hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    tokens: int = 0
    memory_entries: int = 0
    memory_bytes: int = 0
    disk_entries: int = 0
    disk_bytes: int = 0


class Found(NamedTuple):
    """A beginning of a text that is kept, of `count` ids."""

    key: Key
    count: int
    kept: Kept


class StateCache:
    """States of texts of one model, each found by the ids that it has read.

    model: what `models.fingerprint` says of it; the entries of another are not found. config: its RWKVConfig. memory,
    disk: bytes that may be taken there; those not used for longest go first. folder: where states lie on disk, None:
    nowhere. It may be shared by processes of one machine. dtype: 'float32' keeps states as they are, 'bfloat16' takes
    half the bytes, and rounds them.

    Any thread may call it. Disks are written to in a thread of the cache's own. One that is full or broken is warned of
    once, and left alone from then on.
    """

    def __init__(self, model, config, memory=2 << 30, folder=None, disk=20 << 30, dtype="float32"):
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` is what states are kept in, one of {', '.join(DTYPES)}. Received: {dtype!r}.")
        self._model, self._config, self._dtype = model, config, dtype
        self._lock, self._memory, self._figures = threading.Lock(), _Memory(memory), Figures()
        self._disk = None if folder is None else DiskCache(folder, disk, config)

    def find(self, ids, origin=""):
        """(count, RWKVState): the state that has read the longest beginning of `ids` that is kept, of `count` ids; None
        if there is none.

        origin: what the state is called in which the text begins. The arrays may be those that are kept: they are not
        to be written to. What lies on disk is read in the caller's thread.
        """
        prefixes = self._prefixes(ids, origin)
        with self._lock:
            found = self._memory.find(prefixes)
        deeper = self._on_disk(prefixes, 0 if found is None else found.count)
        with self._lock:
            if deeper is not None:
                found = deeper
                self._memory.keep(found.key, found.kept)
            self._count(found, deeper)
        if found is None:
            return None
        self._note(found.key, found.kept)
        return found.count, found.kept.state(self._config.model)

    def keep(self, ids, state, origin=""):
        """Keep a state of one row, NumPy arrays, that has read exactly `ids`. One that is not finite is not kept.

        The arrays belong to the cache from now on. origin: as for `find`.
        """
        self._check(state)
        prefixes = self._prefixes(ids, origin)
        with self._lock:
            kept = self._memory.get(prefixes.key)
        if kept is None:
            kept = self._kept(prefixes.data, state)
            if kept is None:
                return
            with self._lock:
                self._memory.keep(prefixes.key, kept)
        self._note(prefixes.key, kept)

    def figures(self):
        """The `Figures` of this moment."""
        with self._lock:
            figures = replace(self._figures, memory_entries=len(self._memory.entries), memory_bytes=self._memory.nbytes)
        if self._disk is None:
            return figures
        entries, nbytes = self._disk.size
        return replace(figures, disk_entries=entries, disk_bytes=nbytes)

    def close(self):
        """Write what is waiting to be written, and use the disk no more."""
        if self._disk is not None:
            self._disk.close()

    def _prefixes(self, ids, origin):
        return Prefixes(ids, root(self._model, self._dtype, origin))

    def _on_disk(self, prefixes, least):
        """What the disk has of more than `least` ids, a `Found` or None."""
        found = None if self._disk is None else self._disk.find(prefixes, least)
        return None if found is None else Found(*found)

    def _note(self, key, kept):
        if self._disk is not None:
            self._disk.note(key, kept)

    def _count(self, found, deeper):
        done = self._figures
        if found is None:
            self._figures = replace(done, misses=done.misses + 1)
        else:
            from_disk = done.disk_hits + (deeper is not None)
            self._figures = replace(done, hits=done.hits + 1, disk_hits=from_disk, tokens=done.tokens + found.count)

    def _check(self, state):
        state.check(self._config, "What is to be kept")
        if state.batch != 1:
            raise ValueError(f"A state of one row is kept. Received: one of {state.batch} rows. Take `state[row]`.")

    def _kept(self, ids, state):
        """The `Kept` of a state, None if it is not finite."""
        dtypes = str(state.wkv.dtype), str(state.shift.dtype)
        wkv, shift = (_own(array, self._dtype) for array in (state.wkv, state.shift))
        if not (np.isfinite(wkv).all() and np.isfinite(shift).all()):
            return None
        return Kept(ids, RWKVState(wkv, shift, self._config.model), dtypes)


class _Memory:
    """`Kept` by `Key`, of at most so many bytes, in the order of their use. For one thread at a time."""

    def __init__(self, limit):
        self.entries, self.nbytes, self._limit = collections.OrderedDict(), 0, limit
        self._of_chain = collections.Counter()

    def get(self, key):
        """The entry of a key, which is used by that, or None."""
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key]

    def find(self, prefixes):
        """The longest beginning that is here, a `Found` or None."""
        for blocks in range(len(prefixes.chains) - 1, -1, -1):
            if prefixes.chains[blocks] not in self._of_chain:
                continue
            for key in prefixes.keys(blocks):
                kept = self.get(key)
                if kept is not None and prefixes.data.startswith(kept.ids):
                    return Found(key, count(blocks, key), kept)
        return None

    def keep(self, key, kept):
        """Add an entry unless it is there, or larger than all may be; those not used for longest make room."""
        if self.get(key) is not None or kept.nbytes + OWN > self._limit:
            return
        self.entries[key] = kept
        self._of_chain[key.chain] += 1
        self.nbytes += kept.nbytes + OWN
        while self.nbytes > self._limit:
            self._drop()

    def _drop(self):
        key, kept = self.entries.popitem(last=False)
        self.nbytes -= kept.nbytes + OWN
        self._of_chain[key.chain] -= 1
        if not self._of_chain[key.chain]:
            del self._of_chain[key.chain]


def _own(array, dtype):
    """An array that is no part of a larger one, in bfloat16 if that is asked for."""
    if dtype == "bfloat16" and array.dtype.itemsize > 2:
        return array.astype(ml_dtypes.bfloat16)
    array = np.ascontiguousarray(array)
    return array if array.base is None else array.copy()
