"""A server of the chat page whose replies are written beforehand: what a message says decides how it is answered."""

import asyncio
import json
import socket
import threading
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from bert4keras_rwkv.server.page_routes import page_routes

KEY = "a key"


class Scripted:
    """replies: message -> reply; other messages are answered with what they say. Those that begin with "busy",
    "cut", "endless", "refused" or "stopping" are answered in that way. states, modes: names; None where no states are
    kept. pause: seconds between pieces. asked: the body of each request. gone: how many were left before their end.
    """

    def __init__(self, replies=()):
        self.replies = dict(replies)
        self.begin()
        self.app = FastAPI(openapi_url=None)
        self.app.include_router(page_routes())
        self.app.get("/v1/models")(self.models)
        self.app.get("/v1/states")(self.list_states)
        self.app.post("/v1/chat/completions")(self.chat)

    def begin(self):
        """As if nothing had been asked yet."""
        self.states, self.modes, self.pause, self.wants_key = ("lawyer", "诗人"), ["off", "on"], 0.0, False
        self.asked, self.gone = [], 0

    async def models(self, request: Request):
        if self.wants_key and request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "This server wants an API key.")
        return {"object": "list", "data": [{"id": "scripted", "object": "model", "modes": self.modes}]}

    async def list_states(self):
        if self.states is None:
            return refusal(404, "Not Found")
        data = [{"id": name, "object": "state", "kind": "named"} for name in self.states]
        return {"object": "list", "data": [*data, {"id": "session-1", "object": "state", "kind": "session"}]}

    async def chat(self, request: Request):
        body = await request.json()
        self.asked.append(body)
        text = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        if self.wants_key and request.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "This server wants an API key.")
        if text.startswith("busy") and len(self.asked) < 2:
            return refusal(429, "The queue is full.", {"Retry-After": "1"})
        if "state" in body and body["state"] not in (self.states or ()):
            return refusal(404, f"There is no state '{body['state']}'.")
        if "mode" in body and body["mode"] not in self.modes:
            return refusal(400, f"There is no mode '{body['mode']}'.")
        if text.startswith("stopping"):
            return refusal(503, "The server stops.")
        if text.startswith("refused"):
            return refusal(400, "`top_p`: <b>wrong</b>.")
        return StreamingResponse(self.stream(text, body), media_type="text/event-stream")

    async def stream(self, text, body):
        """A reply in events, cut into bytes wherever it happens."""
        goes_on = body["messages"][-1]["role"] == "assistant"
        number = len(self.asked)
        reply = " and on." if goes_on else self.replies.get(text, f"Reply {number} to **{text}**.")
        try:
            yield b": a comment\r\n\r\n"
            for piece in self.pieces(text, reply, goes_on):
                for cut in sliced(event({"choices": [{"index": 0, "delta": {"content": piece}}], "model": "scripted"})):
                    yield cut
                await asyncio.sleep(0.01 if text.startswith("endless") else self.pause)
            if text.startswith("cut") and not goes_on:
                return
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 1000 + number, "completion_tokens": 42, "total_tokens": 1042 + number}
            yield event({"choices": [], "usage": usage})
            yield b"data: [DONE]\r\n\r\n"
        except asyncio.CancelledError:
            self.gone += 1
            raise

    def pieces(self, text, reply, goes_on):
        """The parts of a reply, one a token."""
        if text.startswith("endless") and not goes_on:
            yield from (f"word{number} " for number in range(100_000))
        yield from (reply[at : at + 3] for at in range(0, len(reply), 3))


def event(values):
    return f"data: {json.dumps(values, ensure_ascii=False)}\r\n\r\n".encode()


def sliced(content, size=29):
    return [content[at : at + size] for at in range(0, len(content), size)]


def refusal(status, message, headers=None):
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": None}}, status, headers)


@contextmanager
def served(app):
    """The address where uvicorn serves an application, in a thread, as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
