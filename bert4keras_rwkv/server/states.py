"""States that the server keeps under names: sessions that go on, and states to begin in."""

import asyncio
import contextlib
import hashlib
import io
import logging
import os
import re
import threading
import time
import uuid
import weakref
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_file, locked_if_free
from bert4keras_rwkv.server.places import Place
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.state_files import packed, told_of, unpacked
from bert4keras_rwkv.state import read_metadata
from bert4keras_rwkv.untrusted import shown

ID = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NEW = "new"  # as `session_id`: one that begins
SESSION, UPLOADED, RESPONSE = "sess_", "state_", "resp_"  # what ids begin with that the server gives
SUFFIX, RESPONSE_SUFFIX = ".safetensors", ".response.safetensors"
KEY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}(\.response)?\.safetensors")
MODEL = re.compile("[0-9a-f]{16}")
MOST, LARGEST = 1024, 1 << 30
LINE = 16  # requests that may wait for one session
AGAIN = 0.05  # seconds until a turn that another server has is asked for again
NO_ROOM = 507

logger = logging.getLogger("bert4keras_rwkv")


def new_id(beginning=SESSION):
    """An id that nothing has."""
    return beginning + uuid.uuid4().hex


class States:
    """Places under ids, each of somebody.

    kind: a `StateKind`. folder: where they outlast the server, None: in memory only. Servers of one machine may share
    it; states of other models are kept apart. named: id -> RWKVState of one row; everybody may begin in them, and
    nobody changes them. most, largest: how many states there are, and bytes of all of them, at most.
    What finds no room is refused; nothing is thrown out for it but responses (ids that begin with "resp_"), the oldest
    first, whoever they are of.

    owner: a text for who asks, such as the digest of a key; states of others are as if they were not there. Errors are
    ApiErrors. All methods but `turn` may be called from any thread, and wait for the disk.
    """

    def __init__(self, kind, folder=None, named=None, most=MOST, largest=LARGEST):
        self.kind, self.most, self.largest = kind, most, largest
        self._named = {_named_id(id): Place(kind.fitting(state.numpy()), (), 0) for id, state in (named or {}).items()}
        self._begun = int(time.time())
        self._files = _Memory() if folder is None else _Folder(folder, kind.fingerprint)
        self._lock, self._sizes = threading.Lock(), self._files.sizes({})
        self._writing = {}  # key -> bytes of what is being written
        self._turns = weakref.WeakValueDictionary()

    @property
    def count(self):
        """How many are kept, of all owners, the named ones apart."""
        return len(self._sizes)

    def get(self, id, owner="", field="id"):
        """The `Place`. field: of the request, that a 404 is about."""
        if isinstance(id, str) and id in self._named:
            return self._named[id]
        with self._opened(id, owner, field) as file, _whole(id, field):
            return unpacked(file.read(), self.kind)[0]

    def about(self, id, owner="", field="id"):
        """What is said of a state, as values for JSON."""
        if isinstance(id, str) and id in self._named:
            return _about(id, "named", 0, self.kind.bytes, self._begun, None)
        with self._opened(id, owner, field) as file, _whole(id, field):
            return _described(file)

    def list(self, owner=""):
        """The same of all that `owner` may use: the named ones, then the others, the oldest first."""
        mine, own = _digest(owner), []
        with self._lock:
            self._look()
            keys = [key for key in self._sizes if key.startswith(mine)]
        for key in keys:
            with contextlib.suppress(FileNotFoundError), self._files.open(key) as file:  # it may be gone by now
                try:
                    own.append(_described(file))
                except ValueError as error:
                    logger.error("A state cannot be used: %s", error)
        return [self.about(id) for id in self._named] + sorted(own, key=lambda one: (one["created"], one["id"]))

    def note(self, id, owner=""):
        """The text that was put beside a state, "" if there was none."""
        with self._opened(id, owner, "id") as file, _whole(id, "id"):
            return read_metadata(file, "a state").get("note", "")

    def put(self, id, owner, place, parent=None, field="id", note=""):
        """Keep a place under an id, in place of an earlier one. On disk when this returns. Returns `about` it.

        A 507 if there is no room, and then what was there stays. parent: the id of what it comes from. note: a text
        that is kept beside it.
        """
        return self._put(id, owner, place, parent, field, new=False, note=note)

    def add(self, id, owner, place, parent=None, field="id"):
        """`put`, but a 409 if the id is there already."""
        return self._put(id, owner, place, parent, field, new=True)

    def fork(self, id, owner, new=None, field="id"):
        """Keep the state under another id too, None: that of a new session. Returns `about` it."""
        return self.add(new_id() if new is None else new, owner, self.get(id, owner, field), parent=id)

    def delete(self, id, owner):
        """Forget a state."""
        if isinstance(id, str) and id in self._named:
            raise ApiError(403, f"The state '{id}' is the server's own: it stays.", "id", "state_read_only")
        with self._opened(id, owner, "id"):
            key = _key(id, owner)
        with self._lock:
            self._files.remove(key)
            self._sizes.pop(key, None)

    @contextlib.asynccontextmanager
    async def turn(self, id, owner=""):
        """Have a session alone as long as the block lasts; who came first is first. A 429 if many wait already."""
        turn = self._turns.setdefault((id, owner), _Turn())
        if turn.length > LINE:
            said = f"{LINE} requests wait for {shown(id)} already. Ask again a little later."
            raise ApiError(429, said, code="rate_limit_exceeded", headers={"Retry-After": "1"})
        turn.length += 1
        try:
            async with turn.lock, self._files.turn(_key(str(id), owner)):
                yield
        finally:
            turn.length -= 1

    def _opened(self, id, owner, field):
        """The file of a state, open."""
        if _is_id(id):
            with contextlib.suppress(FileNotFoundError):
                return self._files.open(_key(id, owner))
        raise ApiError(404, f"There is no state {shown(id)}.", field, "state_not_found")

    def _put(self, id, owner, place, parent, field, new, note=""):
        if not _is_id(id) or id == NEW:
            said = f"`{field}`: 1 to 64 letters, digits, `_` and `-`, the first a letter or digit, and not '{NEW}'."
            raise ApiError(400, f"{said} Received: {shown(id)}.", field)
        if id in self._named:
            raise ApiError(409, f"The server's own state has the id '{id}'. Choose another.", field, "state_exists")
        key = _key(id, owner)
        before = self._before(key) or {"created": int(time.time()), "parent": None}
        created, parent = before["created"], before["parent"] if parent is None else parent
        texts = {"id": id, "created": str(created), "parent": parent or ""} | ({"note": note} if note else {})
        data = told_of(field, lambda: packed(place, self.kind, **texts))
        with self._reserved(key, len(data), id, owner, field, new):
            try:
                self._files.write(key, data)
            except OSError as error:
                logger.error("The state '%s' cannot be kept: %s", id, error)
                said = f"The state '{id}' cannot be kept: {error.strerror or error}. What was there before is whole."
                raise ApiError(NO_ROOM, said, field, "insufficient_storage") from error
        return _about(id, _kind(id), place.count, len(data), created, parent)

    def _before(self, key):
        """`about` what a file holds now; None if nothing that can be read, which a new one may replace."""
        with contextlib.suppress(FileNotFoundError, ValueError), self._files.open(key) as file:
            return _described(file)

    @contextlib.contextmanager
    def _reserved(self, key, size, id, owner, field, new):
        """Room for a state, which is given back if the block fails."""
        with self._lock:
            self._look()
            old = self._sizes.get(key)
            exists, leaving = new and old is not None, self._leaving(key, size)
            full = leaving is None
            if not exists and not full:
                self._sizes[key] = self._writing[key] = size
                for other in leaving:
                    self._files.remove(other)
                    del self._sizes[other]
        if exists:
            said = f"There is a state '{id}' already. Choose another id, or delete it."
            raise ApiError(409, said, field, "state_exists")
        if full:
            raise ApiError(NO_ROOM, self._no_room(owner), field, "states_full")
        try:
            yield
        except BaseException:
            with self._lock:
                self._writing.pop(key, None)
                self._sizes.pop(key, None)
                self._sizes |= {} if old is None else {key: old}
            raise
        with self._lock:  # it may have been deleted meanwhile
            self._writing.pop(key, None)
            self._sizes[key] = size

    def _look(self):
        """See what there is: other servers keep states in the folder, too."""
        self._sizes = self._files.sizes(self._sizes) | self._writing

    def _leaving(self, key, size):
        """The keys of the responses that make room for a state of `size` bytes; None if there are too few."""
        count = len(self._sizes) + (key not in self._sizes)
        total = sum(self._sizes.values()) - self._sizes.get(key, 0) + size
        responses = iter([other for other in self._sizes if other.endswith(RESPONSE_SUFFIX) and other != key])
        leaving = []
        while count > self.most or total > self.largest:
            other = next(responses, None)
            if other is None:
                return None
            leaving.append(other)
            count, total = count - 1, total - self._sizes[other]
        return leaving

    def _no_room(self, owner):
        own = [one["id"] for one in self.list(owner) if one["kind"] != "named"]
        oldest = f" Your oldest: {', '.join(own[:3])}." if own else ""
        most = f"{self.most} states, of {self.largest} bytes together"
        return f"The server keeps {most}, and has no room for this. Delete some: DELETE /v1/states/ID.{oldest}"


class _Turn:
    """Of one session: its lock, and how many have it or wait for it."""

    def __init__(self):
        self.lock, self.length = asyncio.Lock(), 0


class _Memory:
    """Files that are gone with the server."""

    def __init__(self):
        self._data = {}

    def sizes(self, known):
        """{key: bytes} of all. known: what this server has kept."""
        return known

    @contextlib.asynccontextmanager
    async def turn(self, key):
        yield

    def open(self, key):
        if (data := self._data.get(key)) is None:
            raise FileNotFoundError(key)
        return io.BytesIO(data)

    def write(self, key, data):
        self._data[key] = data

    def remove(self, key):
        self._data.pop(key, None)


class _Folder:
    """Files of one model in a folder, each there whole, or not at all. No other user can read them."""

    def __init__(self, folder, fingerprint):
        self._folder = Path(folder, _digest(fingerprint)[:16])
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        others = sum(bool(MODEL.fullmatch(path.name)) for path in Path(folder).iterdir()) - 1
        if others:
            logger.warning("'%s' also holds states of %d other models, which are left alone.", folder, others)

    def sizes(self, known):
        """{key: bytes} of all, the oldest first: other servers keep states here, too."""
        found = {}
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another server has removed it
                if KEY.fullmatch(path.name) and path.is_file():
                    found[path.name] = path.stat()
        return {name: found[name].st_size for name in sorted(found, key=lambda name: found[name].st_mtime_ns)}

    @contextlib.asynccontextmanager
    async def turn(self, key):
        """Alone among the servers that share the folder, if the state is there."""
        with contextlib.ExitStack() as stack:
            while (self._folder / key).is_file() and not stack.enter_context(locked_if_free(self._turn_of(key))):
                stack.pop_all().close()
                await asyncio.sleep(AGAIN)
            yield

    def _turn_of(self, key):
        """The file that is locked."""
        return self._folder / f"{key}.turn"

    def open(self, key):
        path = self._folder / key
        if not path.is_file():  # nor waits a server for what stands there instead
            raise FileNotFoundError(key)
        return open(path, "rb")

    def write(self, key, data):
        with atomic_file(self._folder / key) as unfinished, open(unfinished, "xb", opener=_own) as file:
            file.write(data)
        self._on_disk()

    def remove(self, key):
        (self._folder / key).unlink(missing_ok=True)
        self._turn_of(key).unlink(missing_ok=True)
        self._on_disk()

    def _on_disk(self):
        """The names too, where a folder can be flushed."""
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _own(path, flags):
    """Open a file that its owner alone can read."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _whole(id, field):
    """A ValueError of reading a file that the server wrote."""
    try:
        yield
    except ValueError as error:
        logger.error("The state '%s' cannot be used: %s", id, error)
        raise ApiError(500, f"The state '{id}' is damaged. Delete it.", field, "state_damaged") from error


def _described(file):
    """`_about` the open file of a state."""
    said = read_metadata(file, "a state")
    size, id = file.seek(0, os.SEEK_END), said["id"]
    return _about(id, _kind(id), int(said["count"]), size, int(said["created"]), said["parent"] or None)


def _about(id, kind, tokens, size, created, parent):
    head = {"id": id, "object": "state", "kind": kind}
    return head | {"tokens": tokens, "bytes": size, "created": created, "parent": parent}


def _kind(id):
    return {SESSION: "session", RESPONSE: "response"}.get(id[: len(SESSION)], "uploaded")


def _is_id(id):
    return isinstance(id, str) and ID.fullmatch(id) is not None


def _named_id(id):
    if not _is_id(id):
        raise ValueError(f"A state's name is 1 to 64 letters, digits, `_` and `-`. Received: {shown(id)}.")
    return id


def _key(id, owner):
    """The name of a file: whose it is, which, and whether it makes room."""
    return f"{_digest(owner)}-{_digest(id)}{RESPONSE_SUFFIX if id.startswith(RESPONSE) else SUFFIX}"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:32]
