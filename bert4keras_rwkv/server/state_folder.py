"""States in a folder, found by the ids that they have read: an index in SQLite, a file for each.

Whoever changes something holds the index's lock for writing, so that files and index agree but for what a killed
process leaves, which the next one that opens the folder removes.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import sqlite3
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import locked, remove_unfinished
from bert4keras_rwkv.ops.cache import own_folder
from bert4keras_rwkv.server.prefixes import BLOCK, LINK, count
from bert4keras_rwkv.state import RWKVState

INDEX, LOCK, SUFFIX = "states.sqlite", "lock", ".safetensors"
PATIENCE = 30  # seconds that another process may hold the index
AT_ONCE = 1000  # hashes that the index is asked for at a time

SCHEMA = """
CREATE TABLE IF NOT EXISTS states (
    chain BLOB, tail BLOB, ids BLOB, wkv_dtype TEXT, shift_dtype TEXT,
    file TEXT, checksum INTEGER, size INTEGER, used INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS by_key ON states (chain, tail);
CREATE INDEX IF NOT EXISTS by_use ON states (used, size, file);
"""
NEXT = "(SELECT coalesce(max(used), 0) + 1 FROM states)"

logger = logging.getLogger("bert4keras_rwkv")


@dataclass(frozen=True)
class Kept:
    """A state as it is kept, what it has read, as bytes, and the dtypes that its arrays had."""

    ids: bytes
    arrays: RWKVState
    dtypes: tuple[str, str]

    @property
    def nbytes(self):
        return self.arrays.wkv.nbytes + self.arrays.shift.nbytes + len(self.ids)

    def state(self, model):
        """The RWKVState, in the dtypes that it had."""
        wkv, shift = (
            array.astype(dtype, copy=False)
            for array, dtype in zip((self.arrays.wkv, self.arrays.shift), self.dtypes, strict=True)
        )
        return RWKVState(wkv, shift, model)


class StateFolder:
    """States of all models on disk, of at most `limit` bytes; those not used for longest go first.

    `keep` is for one thread, `find` for one other. Both raise OSError and sqlite3.DatabaseError; files that are damaged
    are removed, and not found. entries, nbytes: what it held after the last change here.
    """

    def __init__(self, folder, limit, config):
        self._folder, self._limit, self._config = own_folder("states", folder), limit, config
        self._damage_said = False
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._folder / LOCK))
            opened = stack.enter_context(contextlib.ExitStack())
            self._writer = opened.enter_context(contextlib.closing(self._index()))
            self._reader = opened.enter_context(contextlib.closing(self._connected()))
            with self._changing() as index:
                self._remove_strays(index)
            opened.pop_all()

    def find(self, prefixes, least):
        """The longest beginning of more than `least` ids that is whole and fits the model: (Key, count, Kept), or None.

        It does not become the last used by that.
        """
        for blocks in self._known(prefixes, least // BLOCK):
            for key in self._of_chain(prefixes.keys(blocks)):
                number = count(blocks, key)
                kept = self._found(key, prefixes.data) if number > least else None
                if kept is not None:
                    return key, number, kept
        return None

    def keep(self, key, kept):
        """Write a state unless it is there, and let it be the last used. One larger than all may be is not written."""
        with self._changing() as index:
            there = index.execute("SELECT file FROM states WHERE chain = ? AND tail = ?", key).fetchone()
            if there is not None and self._path(*there).is_file():
                index.execute(f"UPDATE states SET used = {NEXT} WHERE chain = ? AND tail = ?", key)
            elif kept.nbytes <= self._limit:
                self._add(index, key, kept)

    def close(self):
        """Let the index go."""
        self._reader.close()
        self._writer.close()

    def _known(self, prefixes, least):
        """The numbers of whole blocks, at least `least`, after whose hash something is kept, from the largest down."""
        blocks = {chain: number for number, chain in enumerate(prefixes.chains) if number >= least}
        wanted = list(reversed(blocks))
        for at in range(0, len(wanted), AT_ONCE):
            some = wanted[at : at + AT_ONCE]
            query = f"SELECT DISTINCT chain FROM states WHERE chain IN ({_marks(some)})"
            yield from sorted((blocks[chain] for (chain,) in self._reader.execute(query, some)), reverse=True)

    def _of_chain(self, keys):
        """Those of some keys of one chain that are in the index, in their order."""
        tails = [key.tail for key in keys]
        query = f"SELECT tail FROM states WHERE chain = ? AND tail IN ({_marks(tails)})"
        there = {tail for (tail,) in self._reader.execute(query, [keys[0].chain, *tails])}
        return [key for key in keys if key.tail in there]

    def _found(self, key, data):
        """The `Kept` of a key, None if it has not read these ids, is gone, or is damaged, and then it is removed."""
        query = "SELECT ids, wkv_dtype, shift_dtype, file, checksum FROM states WHERE chain = ? AND tail = ?"
        ids, *dtypes, file, checksum = self._reader.execute(query, key).fetchone() or (None,) * 5
        if ids is None or not data.startswith(ids):
            return None
        path = self._path(file)
        try:
            return Kept(ids, self._read(path, checksum), tuple(dtypes))
        except FileNotFoundError:  # another process has made room
            return None
        except ValueError as error:
            self._say_damaged(path.name, error)
            path.unlink(missing_ok=True)
            return None

    def _read(self, path, checksum):
        """The RWKVState in a file; a ValueError if it is not what was written, or no state of one row of the model."""
        if zlib.crc32(path.read_bytes()) != checksum:
            raise ValueError("its checksum is another")
        state = RWKVState.load(path)
        state.check(self._config)
        if state.batch != 1 or not (np.isfinite(state.wkv).all() and np.isfinite(state.shift).all()):
            raise ValueError("it has several rows, or numbers that are not finite")
        return state

    def _say_damaged(self, file, error):
        if not self._damage_said:
            self._damage_said = True
            logger.warning("Damaged states in '%s' are removed. The first is %s: %s.", self._folder, file, error)

    def _add(self, index, key, kept):
        """Write a file and its row, and make room. No name of a file is used twice."""
        name = hashlib.blake2b(b"".join(key), digest_size=LINK).hexdigest()
        file = f"{name}-{secrets.token_hex(4)}{SUFFIX}"
        path = self._path(file)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            kept.arrays.save(path)
            path.chmod(0o600)
            data = path.read_bytes()
            row = *key, kept.ids, *kept.dtypes, file, zlib.crc32(data), len(data) + len(kept.ids)
            index.execute(f"INSERT OR REPLACE INTO states VALUES ({_marks(row)}, {NEXT})", row)
            self._make_room(index)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _make_room(self, index):
        """Remove those not used for longest until the rest is small enough."""
        self.entries, self.nbytes = index.execute("SELECT count(*), coalesce(sum(size), 0) FROM states").fetchone()
        gone = []
        for row, file, size in index.execute("SELECT rowid, file, size FROM states ORDER BY used"):
            if self.nbytes <= self._limit:
                break
            gone.append((row, file))
            self.entries, self.nbytes = self.entries - 1, self.nbytes - size
        for row, file in gone:
            index.execute("DELETE FROM states WHERE rowid = ?", (row,))
            self._path(file).unlink(missing_ok=True)

    def _remove_strays(self, index):
        """Remove files that are not in the index, or not finished, and rows whose files are gone."""
        rows = {file: row for row, file in index.execute("SELECT rowid, file FROM states")}
        for part in self._folder.glob("[0-9a-f][0-9a-f]"):
            remove_unfinished(part)
            for path in part.glob(f"*{SUFFIX}"):
                if rows.pop(path.name, None) is None:
                    path.unlink(missing_ok=True)
        index.executemany("DELETE FROM states WHERE rowid = ?", [(row,) for row in rows.values()])
        self._make_room(index)

    def _path(self, file):
        return self._folder / file[:2] / file

    @contextlib.contextmanager
    def _changing(self):
        """The index, in one transaction for all that is done with it and with files; nobody else changes them then."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def _index(self):
        """A connection to the index; to a new one if the one that is there is damaged."""
        path = self._folder / INDEX
        try:
            return self._checked()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            logger.warning(
                "'%s' is damaged (%s). It is made anew, and the states that it led to are lost.", path, error
            )
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        return self._checked()

    def _checked(self):
        """A connection to the index; a DatabaseError if that is damaged."""
        with contextlib.ExitStack() as stack:
            index = self._connected()
            stack.callback(index.close)
            index.executescript(SCHEMA)
            (said,) = index.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise sqlite3.DatabaseError(said)
            stack.pop_all()
            return index

    def _connected(self):
        """A connection that any thread may use. The files of the index are its owner's alone.

        The index is opened here only to make it: who closes a file gives up all locks that SQLite has in this process.
        """
        path = self._folder / INDEX
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        path.chmod(0o600)
        index = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            index.execute("PRAGMA journal_mode = WAL")
            index.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            index.close()
            raise
        return index


def _marks(values):
    """Places for so many values in a query."""
    return ", ".join("?" * len(values))
