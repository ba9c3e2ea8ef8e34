"""A state that leaves the server and comes back: to this one, or to any other that has the same key."""

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from bert4keras_rwkv.atomic import locked
from bert4keras_rwkv.server.access import warn_of_readers
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.state_files import packed, told_of, unpacked
from bert4keras_rwkv.untrusted import regular, shown

SHORTEST = 32  # bytes of a key
PURPOSE = b"bert4keras_rwkv.state\0"  # what is signed for another use of the key is no state


class Seal:
    """Signs places, and takes back what was signed with the same key. kind: a `StateKind`."""

    def __init__(self, key, kind):
        if len(key) < SHORTEST:
            raise ValueError(f"A key that signs states has at least {SHORTEST} bytes. Received: {len(key)}.")
        self._key, self.kind = key, kind

    @property
    def longest(self):
        """Characters of a sealed state at most, as JSON."""
        return _encoded(self.kind.largest) + 1024

    def sealed(self, place):
        """A `Place` as values for JSON. They are signed, not secret."""
        data = told_of("return_state", packed, place, self.kind)
        return {
            "object": "state",
            "model": self.kind.fingerprint,
            "tokens": place.count,
            "bytes": len(data),
            "data": base64.b64encode(data).decode(),
            "signature": self._signature(data),
        }

    def opened(self, given, field="state"):
        """The `Place` in what `sealed` gave. What stands beside `data` and `signature` is for the reader alone.

        Raises ApiError 400, about the field: code 'state_signature' for what was not signed with this key,
        'state_model' for another model's state, 'invalid_state' for what is none.
        """
        data, signature = self._parts(given, field)
        if not hmac.compare_digest(signature.encode(), self._signature(data).encode()):
            said = f"`{field}` was not signed by this server, or was changed since. Send back what it returned, whole."
            raise ApiError(400, said, field, "state_signature")
        return told_of(field, unpacked, data, self.kind)[0]

    def _parts(self, given, field):
        """(data, signature) of what is given, bytes and str."""
        if not isinstance(given, dict):
            raise ApiError(400, f"`{field}` is a returned state. Received: {shown(given)}.", field, "invalid_state")
        for name in ("data", "signature"):
            if not isinstance(given.get(name), str) or not given[name].isascii():
                said = f"`{field}.{name}`: an ASCII text is expected. Received: {shown(given.get(name))}."
                raise ApiError(400, said, field, "invalid_state")
        longest = _encoded(self.kind.largest)
        if len(given["data"]) > longest:
            said = f"`{field}.data` has at most {longest} characters. Received: {len(given['data'])}."
            raise ApiError(400, said, field, "invalid_state")
        try:
            return base64.b64decode(given["data"], validate=True), given["signature"]
        except ValueError as error:
            raise ApiError(400, f"`{field}.data` is no base64: {error}.", field, "invalid_state") from error

    def _signature(self, data):
        signed = hmac.new(self._key, PURPOSE, hashlib.sha256)
        signed.update(data)
        return signed.hexdigest()


def read_key(path):
    """The key in a file, bytes. A file that is missing, or empty, gets a new one, which its owner alone can read."""
    path = Path(path)
    if not path.exists() or not Path(regular(path, "Keys")).stat().st_size:
        with locked(path):  # several servers may begin at once
            if not path.stat().st_size:
                _write_key(path)
    key = path.read_bytes().strip()
    if len(key) < SHORTEST:
        raise ValueError(
            f"'{path}' holds a key of {len(key)} bytes, and {SHORTEST} are the least. Remove it: a new one is made."
        )
    warn_of_readers(path)
    return key


def _write_key(path):
    path.chmod(0o600)
    with open(path, "wb") as file:
        file.write(secrets.token_hex(SHORTEST).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _encoded(size):
    """Characters of so many bytes in base64."""
    return 4 * -(-size // 3)
