"""The server as a FastAPI application: from a request to rows of the scheduler, and from their events to a response."""

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.request import seeds
from bert4keras_rwkv.server import protocol
from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.asked import Asked, Failed, Piece
from bert4keras_rwkv.server.listening import Bell, Listening
from bert4keras_rwkv.server.protocol import Answer, ApiError, ChatForm, CompletionForm, parsed
from bert4keras_rwkv.server.scheduler import ClosedError, FullError
from bert4keras_rwkv.templates import conversation, ids_of
from bert4keras_rwkv.tokenizers.prompts import token_ids, unix_lines

GONE = 499  # as nginx calls it: whoever asked does not listen any more
COMPLETION_TOKENS = 16  # of an answer, where nothing is said, as OpenAI has it
RETRY = {"Retry-After": "1"}


@dataclasses.dataclass(frozen=True)
class Service:
    """What is served. name: of the model. template: of its conversations. longest: tokens of an answer at most, and of
    a chat's where nothing is said. longest_prompt: tokens.
    """

    name: str
    scheduler: Any
    template: Any
    vocab_size: int
    access: Access = dataclasses.field(default_factory=Access)
    longest: int = 4096
    longest_prompt: int = 65536
    bell: Bell = dataclasses.field(default_factory=Bell)

    @property
    def tokenizer(self):
        return self.scheduler.tokenizer

    def check_model(self, name):
        """A 404 unless it is the model that is here, or none is named."""
        if name not in (None, self.name):
            message = f"The model {protocol.shown(name)} is not here. There is: '{self.name}'."
            raise ApiError(404, message, "model", "model_not_found")

    def chat_ids(self, wanted):
        """The ids of a conversation, up to where the answer comes."""
        turns = [{"role": _role(message.role), "content": message.content} for message in wanted.messages]
        parts = conversation(turns, "the conversation", self.template) + self.template.turn("assistant")
        return ids_of(self.tokenizer, parts)

    def prompt_ids(self, prompt):
        """The ids of a prompt, which is a str or ids."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(unix_lines(prompt))
        return token_ids(prompt, self.vocab_size).tolist()

    def asked(self, wanted, ids, field, limit, stops, first_seed):
        """What the scheduler is asked. field: what the ids came from. limit: tokens of an answer."""
        if not ids:
            raise ApiError(400, f"`{field}` has no token: give it at least one character.", field)
        if len(ids) > self.longest_prompt:
            message = f"`{field}` has {len(ids)} tokens, and may have {self.longest_prompt}."
            raise ApiError(400, message, field, "context_length_exceeded")
        numbers = {name: getattr(wanted, name) for name in ("temperature", "top_p", "top_k")}
        numbers |= {name: getattr(wanted, name) for name in ("presence_penalty", "frequency_penalty")}
        sampling = Sampling(**{name: value for name, value in numbers.items() if value is not None})
        return Asked(tuple(ids), seeds(first_seed, wanted.n or 1), limit, sampling, stops)

    def limit(self, tokens, field, usual):
        """Tokens of an answer."""
        if tokens is not None and tokens > self.longest:
            raise ApiError(400, f"`{field}` is at most {self.longest} here. Received: {tokens}.", field)
        return min(usual, self.longest) if tokens is None else tokens


def make_app(service):
    """The application. Its scheduler is stopped with it, and has to be started before."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await run_in_threadpool(service.scheduler.stop, 0.0)  # what was to be finished is, by now

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _told_by_starlette)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
    for prefix in ("/v1", ""):
        app.include_router(_routes(service), prefix=prefix)
    return app


def _routes(service):
    access = service.access
    open_to_all = APIRouter(dependencies=[Depends(_async(access.check_host))])
    router = APIRouter(dependencies=[Depends(_async(access.check_key))])

    @open_to_all.get("/health")
    async def health():
        return {"status": "ok", "running": service.scheduler.running, "waiting": service.scheduler.waiting}

    @router.post("/chat/completions")
    async def chat(request: Request):
        wanted = parsed(protocol.ChatWanted, await access.body(request))
        service.check_model(wanted.model)
        field = "max_tokens" if wanted.max_completion_tokens is None else "max_completion_tokens"
        limit = service.limit(getattr(wanted, field), field, service.longest)
        ids = await _encoded("messages", service.chat_ids, wanted)
        stops = (*wanted.stop, *service.template.stop_texts)
        several = [service.asked(wanted, ids, "messages", limit, stops, wanted.seed)]
        return await _answered(request, service, wanted, several, ChatForm)

    @router.post("/completions")
    async def completions(request: Request):
        wanted = parsed(protocol.CompletionWanted, await access.body(request))
        service.check_model(wanted.model)
        limit, several = service.limit(wanted.max_tokens, "max_tokens", COMPLETION_TOKENS), []
        for number, prompt in enumerate(wanted.prompt):
            ids = await _encoded("prompt", service.prompt_ids, prompt)
            seed = None if wanted.seed is None else wanted.seed + number * (wanted.n or 1)
            several.append(service.asked(wanted, ids, "prompt", limit, wanted.stop, seed))
        return await _answered(request, service, wanted, several, CompletionForm)

    @router.get("/models")
    async def models():
        return {"object": "list", "data": [_model(service.name)]}

    @router.get("/models/{name:path}")
    async def model(name: str):
        service.check_model(name)
        return _model(service.name)

    @router.post("/tokenize")
    async def tokenize(request: Request):
        wanted = parsed(protocol.TextWanted, await access.body(request))
        text = wanted.content if wanted.prompt is None else wanted.prompt
        if text is None:
            raise ApiError(400, "`prompt`: the text to encode is missing.", "prompt")
        ids = await _encoded("prompt", service.tokenizer.encode, text)
        return {"tokens": ids, "count": len(ids)}

    @router.post("/detokenize")
    async def detokenize(request: Request):
        wanted = parsed(protocol.IdsWanted, await access.body(request))
        text = await _encoded("tokens", service.tokenizer.decode, wanted.tokens)
        return {"prompt": text, "content": text}

    open_to_all.include_router(router)
    return open_to_all


class _Stream(StreamingResponse):
    """A streamed response, with which its `Listening` ends, however it ends."""

    def __init__(self, listening, *args, **options):
        super().__init__(*args, **options)
        self._listening = listening

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listening.leave()


async def _answered(request, service, wanted, several, form):
    """The response to a request, streamed or whole."""
    count, most = sum(len(asked.seeds) for asked in several), service.scheduler.most
    if count > most:
        raise ApiError(400, f"`n` times the prompts are {count} answers, and {most} is the most.", "n")
    try:
        listening = Listening(service.scheduler, several, service.bell)
    except FullError as error:
        raise ApiError(429, f"{error} Ask again a little later.", code="rate_limit_exceeded", headers=RETRY) from error
    except ClosedError as error:
        raise ApiError(503, str(error), code="stopping", headers=RETRY) from error
    answer = Answer(form, service.name, wanted.usage_wanted)
    if wanted.stream:
        return _Stream(
            listening,
            _streamed(listening, answer, wanted.usage_wanted),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    whole, gone = asyncio.create_task(_whole(listening, answer)), asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(whole.result()) if whole.done() else Response(status_code=GONE)
    finally:
        listening.leave()
        whole.cancel()
        gone.cancel()


async def _whole(listening, answer):
    """The body of a whole response."""
    texts, reasons, written = [""] * listening.answers, [None] * listening.answers, 0
    async for event in _shown(listening, answer.form):
        if isinstance(event, Failed):
            raise ApiError(500, event.message)
        if isinstance(event, Piece):
            texts[event.answer] += event.text
        else:
            reasons[event.answer], written = event.reason, written + event.tokens
    return answer.all(texts, reasons, protocol.usage(listening.read, written))


async def _streamed(listening, answer, usage_wanted):
    """The events of a streamed response, as text."""
    form, written = answer.form, 0
    for index in range(listening.answers if form.begun() else 0):
        yield _event(answer.chunk(index, form.begun()))
    async for event in _shown(listening, form):
        if isinstance(event, Failed):
            yield _event(ApiError(500, event.message).body)
            return
        if isinstance(event, Piece):
            yield _event(answer.chunk(event.answer, form.piece(event.text)))
        else:
            written += event.tokens
            yield _event(answer.chunk(event.answer, form.piece(""), event.reason))
    if usage_wanted:
        yield _event(answer.last(protocol.usage(listening.read, written)))
    yield "data: [DONE]\n\n"


async def _shown(listening, form):
    """The events, without the space that a reply of a chat begins with."""
    begun = [form is not ChatForm] * listening.answers
    async for event in listening.events():
        if isinstance(event, Piece) and not begun[event.answer]:
            event = dataclasses.replace(event, text=event.text.lstrip())
            begun[event.answer] = bool(event.text)
        if not isinstance(event, Piece) or event.text:
            yield event


async def _until_gone(request):
    """Return when whoever asked does not listen any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _encoded(field, function, given):
    """`function(given)` in another thread, for a long text takes a while. A ValueError is about the field."""
    try:
        return await run_in_threadpool(function, given)
    except ValueError as error:
        raise ApiError(400, f"`{field}`: {error}", field) from error


def _event(values):
    return f"data: {json.dumps(values)}\n\n"


def _model(name):
    return {"id": name, "object": "model", "created": 0, "owned_by": "bert4keras_rwkv"}


def _role(role):
    return "system" if role == "developer" else role


def _async(check):
    """A check as a dependency that runs in the event loop, for it takes no time."""

    async def dependency(request: Request):
        check(request)

    return dependency


async def _told(request, error):
    return JSONResponse(error.body, error.status, error.headers)


async def _told_by_starlette(request, error):
    message = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(ApiError(error.status_code, message).body, error.status_code, error.headers)


async def _gone(request, error):
    return Response(status_code=GONE)


async def _unexpected(request, error):
    return JSONResponse(ApiError(500, "The server made a mistake, which its log tells of.").body, 500)
