"""Who may ask, and how much: keys, the Host header, and the size of a body."""

import hashlib
import hmac
import ipaddress
import logging
import stat
from pathlib import Path

from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.untrusted import regular

JSON = "application/json"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

logger = logging.getLogger("bert4keras_rwkv")


def is_loopback(host):
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(path):
    """The keys in a file, one a line; empty lines and those that begin with # are none. Returns a list of str."""
    file = Path(regular(path, "Keys"))
    lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"'{path}' holds no key. Write one into it, in a line of its own.")
    warn_of_readers(file)
    return keys


def warn_of_readers(path):
    """Say so if others than the owner can read a file of keys."""
    if Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("Others can read the keys in '%s'. `chmod 600` keeps them yours.", path)


async def read_body(request, largest, *types):
    """(type, bytes) of a body of one of these types, of `largest` bytes at most."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in types:
        what = "JSON" if types == (JSON,) else "one of these types"
        said = " or ".join(f"`Content-Type: {one}`" for one in types)
        raise ApiError(415, f"The body is {what}: say so by {said}.")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise ApiError(413, f"A body has at most {largest} bytes.")
        parts.append(part)
    return given, b"".join(parts)


class Access:
    """What a request has to show. keys: a list of str, None: nobody needs one. names: that the Host header may say,
    None: any. largest: bytes of a body.
    """

    def __init__(self, keys=None, names=None, largest=1 << 21):
        self._digests = None if keys is None else [_digest(key) for key in keys]
        self._names, self._largest = names, largest

    def check_host(self, request):
        """A page of another site can have its name lead here, but not change what the browser says it asked for."""
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self._names is not None and name.lower() not in self._names:
            raise ApiError(403, f"This server is asked by the names {', '.join(self._names)} only.", code="host")

    def check_key(self, request):
        """Every key is compared, in a time that does not depend on where it differs."""
        if self._digests is None:
            return
        given = _digest(_shown_key(request))
        if not sum(hmac.compare_digest(given, known) for known in self._digests):
            headers = {"WWW-Authenticate": "Bearer"}
            message = "This server wants an API key, as `Authorization: Bearer KEY`, and has not got a right one."
            raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def owner(self, request):
        """Whose states are meant: a text for the key that is shown, "" where nobody needs one."""
        return "" if self._digests is None else _digest(_shown_key(request)).hex()

    def asker(self, request):
        """Who asks, for turns: by key, else by address."""
        return self.owner(request) or (request.client.host if request.client else "")

    async def body(self, request, more=0):
        """The bytes of a JSON body, at most `more` beyond what is usual. A page of another site may send that type only
        if this server says so.
        """
        return (await read_body(request, self._largest + more, JSON))[1]


def _shown_key(request):
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def _digest(key):
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
