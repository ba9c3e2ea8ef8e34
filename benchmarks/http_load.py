"""A client that costs little: one HTTP request a connection, what came and when, and nothing parsed until it is over.

replies = asyncio.run(together([ask(server, "/v1/completions", body) for body in bodies]))
"""

import asyncio
import functools
import json
import socket
import time
from typing import NamedTuple

import h11

SMALL = 4096  # bytes that the system keeps for a slow reader


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Reply:
    """What came of one request. sent: when, by time.perf_counter. arrivals: (when, bytes) of each piece."""

    def __init__(self, sent, arrivals):
        self.sent, self.arrivals = sent, arrivals

    @property
    def ended(self):
        """When the last of it came."""
        return self.arrivals[-1][0] if self.arrivals else self.sent

    @functools.cached_property
    def _parts(self):
        """(status, [(when, bytes of the body)], whether it is whole). status: 0 where no head came."""
        connection, status, body = h11.Connection(h11.CLIENT), 0, []
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Connection", "close")]))
        connection.send(h11.EndOfMessage())
        try:
            for when, data in [*self.arrivals, (self.ended, b"")]:
                connection.receive_data(data)
                for event in _events(connection):
                    if isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        body.append((when, bytes(event.data)))
                    elif isinstance(event, h11.EndOfMessage):
                        return status, body, True
        except h11.RemoteProtocolError:
            return status, body, False  # it was cut off, or is no HTTP
        return status, body, False

    @property
    def status(self):
        """Of HTTP; 0 where the connection ended before it came."""
        return self._parts[0]

    @property
    def is_whole(self):
        """Whether all of it came: of a stream, up to its [DONE]."""
        _, body, whole = self._parts
        is_stream = body and body[0][1].startswith(b"data:")
        return whole and (not is_stream or self._lines[-1][1] == "[DONE]")

    @property
    def json(self):
        """The body that is no stream."""
        return json.loads(b"".join(data for _, data in self._parts[1]))

    @functools.cached_property
    def _lines(self):
        """(when, text) of each whole event of a stream."""
        lines, left = [], b""
        for when, data in self._parts[1]:
            *whole, left = (left + data.replace(b"\r\n", b"\n")).split(b"\n\n")
            lines += [(when, one.removeprefix(b"data:").strip().decode()) for one in whole if one.startswith(b"data:")]
        return lines

    @functools.cached_property
    def events(self):
        """(when, dict) of each event of a stream."""
        return [(when, json.loads(text)) for when, text in self._lines if text != "[DONE]"]

    @property
    def _told(self):
        """The values of the events, or of the one body."""
        return [event for _, event in self.events] if self._lines else [self.json]

    @property
    def _choices(self):
        return [choice for one in self._told for choice in one.get("choices", ())]

    @functools.cached_property
    def texts(self):
        """The text of each answer, by number: streamed or whole, of a chat or not."""
        texts = {}
        for choice in self._choices:
            texts[choice["index"]] = texts.get(choice["index"], "") + text_of(choice)
        return texts

    @property
    def reasons(self):
        """Why each answer ended, by number."""
        return {choice["index"]: choice["finish_reason"] for choice in self._choices if choice.get("finish_reason")}

    def last(self, name):
        """What was said last under a name, None for nothing: streamed or whole."""
        return next((one[name] for one in reversed(self._told) if one.get(name) is not None), None)

    @property
    def first(self):
        """Seconds from the request to the first text of a stream."""
        return next(when for when, one in self.events if any(map(text_of, one.get("choices", ())))) - self.sent


def _events(connection):
    """What an h11.Connection has understood so far."""
    while not isinstance(event := connection.next_event(), h11.ConnectionClosed) and event is not h11.NEED_DATA:
        yield event


def text_of(choice):
    """The text of a choice, or of a piece of one."""
    part = choice.get("delta") or choice.get("message") or choice
    return part.get("content") or part.get("text") or ""


class Exchange(asyncio.Protocol):
    """A request, and what comes back until the server closes. pause: seconds that this end reads nothing, after each
    piece.
    """

    def __init__(self, request, pause=0.0):
        self._request, self._pause, self.reply = request, pause, None
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self._transport, self.reply = transport, Reply(time.perf_counter(), [])
        transport.write(self._request)

    def data_received(self, data):
        self.reply.arrivals.append((time.perf_counter(), data))
        if self._pause:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._pause, self._go_on)

    def _go_on(self):
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, error):
        if not self.ended.done():
            self.ended.set_result(None)


def request(address, path, body=None, method=None):
    """The bytes of a request, after whose answer the server closes. body: bytes, or values that are sent as JSON.

    method: of HTTP, None: POST with a body and GET without one.
    """
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.host}:{address.port}"]
    lines += ["Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def exchanged(address, data, pause=0.0):
    """The `Reply` to the bytes of a request. Raises OSError where nobody listens. Who cancels it hangs up."""
    loop, sock = asyncio.get_running_loop(), socket.socket()
    sock.setblocking(False)
    if pause:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    try:
        await loop.sock_connect(sock, address)
    except OSError:
        sock.close()
        raise
    transport, exchange = await loop.create_connection(lambda: Exchange(data, pause), sock=sock)
    try:
        await exchange.ended
    finally:
        transport.abort()
    return exchange.reply


async def ask(address, path, body=None, pause=0.0, method=None):
    """The `Reply` to a request."""
    return await exchanged(address, request(address, path, body, method), pause)


async def together(coroutines):
    """The results of coroutines that run at once."""
    return await asyncio.gather(*coroutines)
