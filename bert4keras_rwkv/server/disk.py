"""States on disk, for a server that does not wait for disks, and goes on when one fails."""

import collections
import contextlib
import logging
import sqlite3
import threading

from bert4keras_rwkv.ops.cache import UnusableError
from bert4keras_rwkv.server.state_folder import StateFolder
from bert4keras_rwkv.untrusted import told

WAITING = 256 << 20  # bytes that may wait to be written; a disk that is slower loses some

logger = logging.getLogger("bert4keras_rwkv")


class DiskCache:
    """A `StateFolder` that nobody waits for who keeps a state, and that is off once it has failed."""

    def __init__(self, folder, limit, config):
        self._waiting, self._bytes, self._changed = collections.OrderedDict(), 0, threading.Condition()
        self._finding, self._folder, self._on, self._closed = threading.Lock(), None, True, False
        with self._or_off():
            self._folder = StateFolder(folder, limit, config)
        self._thread = threading.Thread(target=self._write, name="state-cache", daemon=True)
        self._thread.start()

    @property
    def size(self):
        """How many states it holds, and their bytes."""
        return (self._folder.entries, self._folder.nbytes) if self._on else (0, 0)

    def find(self, prefixes, least):
        """The longest beginning of more than `least` ids: (Key, count, Kept) or None."""
        with self._finding, self._or_off():
            if self._on and not self._closed:
                return self._folder.find(prefixes, least)
        return None

    def note(self, key, kept):
        """Let it be written if it is not there, and be the last used."""
        with self._changed:
            room = self._bytes + kept.nbytes <= WAITING
            if room and key not in self._waiting and self._on and not self._closed:
                self._waiting[key] = kept
                self._bytes += kept.nbytes
                self._changed.notify()

    def close(self):
        """Write what waits, and nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._finding:
            if self._folder is not None:
                self._folder.close()

    def _write(self):
        while (job := self._next()) is not None:
            with self._or_off():
                self._folder.keep(*job)

    def _next(self):
        """A Key and its Kept, None behind the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            key, kept = self._waiting.popitem(last=False)
            self._bytes -= kept.nbytes
            return key, kept

    @contextlib.contextmanager
    def _or_off(self):
        """A context whose failure ends the use of the disk. That others hold the index for too long is none, once it
        was opened.
        """
        try:
            yield
        except (OSError, sqlite3.DatabaseError, UnusableError) as error:
            if self._folder is not None and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                return
            with self._changed:
                was_on, self._on, self._bytes = self._on, False, 0
                self._waiting.clear()
            if was_on:
                logger.warning("States are kept in memory only from now on, for their folder failed: %s.", told(error))
