"""From what the scheduler is asked to a response, whole or streamed, that ends with whoever listens."""

import asyncio
import json
from typing import Any, NamedTuple

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from bert4keras_rwkv.server.asked import Failed, Piece
from bert4keras_rwkv.server.forms import Answer, usage
from bert4keras_rwkv.server.listening import Listening
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.scheduler import ClosedError, FullError

GONE = 499  # as nginx calls it: whoever asked does not listen any more


class Question(NamedTuple):
    """What a response is to. wanted: the request. several: `Asked`s. form: of the answers. kept: a function that keeps
    what is to be kept of a `Done`, and returns what the response has besides.
    """

    wanted: Any
    several: list
    form: Any
    kept: Any


async def answered(request, service, question, stack):
    """The response to a question. stack: an AsyncExitStack, which ends with it."""
    listening = listening_to(service, question.several)
    stack.callback(listening.leave)
    answer = Answer(question.form, service.name, question.wanted.usage_wanted)
    if question.wanted.stream:
        return Stream(_streamed(listening, answer, question), stack.pop_all())
    return await unless_gone(request, _whole(listening, answer, question))


def listening_to(service, several):
    """The `Listening` to some `Asked`s. Raises ApiError where they are not taken."""
    try:
        return Listening(service.scheduler, several, service.bells, service.metrics.timed)
    except FullError as error:
        headers = {"Retry-After": str(error.seconds)}
        message = f"{error} Ask again a little later."
        raise ApiError(429, message, code="rate_limit_exceeded", headers=headers) from error
    except ClosedError as error:
        raise ApiError(503, str(error), code="stopping", headers={"Retry-After": "5"}) from error


class Stream(StreamingResponse):
    """Events that are sent as they come, and a stack that ends with them, however they end."""

    def __init__(self, events, stack):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stack = stack

    async def __call__(self, scope, receive, send):
        async with self._stack:
            await super().__call__(scope, receive, send)


async def unless_gone(request, response):
    """The Response that the coroutine `response` gives, unless whoever asked stops listening before."""
    whole, gone = asyncio.create_task(response), asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        return whole.result() if whole.done() else Response(status_code=GONE)
    finally:
        whole.cancel()
        gone.cancel()


async def _whole(listening, answer, question):
    """A whole response."""
    form, count = answer.form, listening.answers
    replies, deltas, tokens, ends = [form.reply(i) for i in range(count)], [[] for _ in range(count)], {}, {}
    async for event in listening.events():
        if isinstance(event, Failed):
            raise failure(event)
        if isinstance(event, Piece):
            deltas[event.answer] += replies[event.answer].feed(event.text)
            tokens.setdefault(event.answer, []).extend(event.tokens)
        else:
            deltas[event.answer] += replies[event.answer].end(event.reason)
            ends[event.answer] = event
    more = await _kept(question, ends[0])

    def body():
        usage = _usage(listening, ends.values())
        return JSONResponse(answer.all(_choices(form, question, replies, deltas, tokens, ends), usage, more))

    return await run_in_threadpool(body) if tokens_told(question) else body()


def tokens_told(question):
    """Whether more is told than the text: that may be much."""
    return question.wanted.logprobs_wanted is not None


def _choices(form, question, replies, deltas, tokens, ends):
    """The choices of a whole response."""
    choices = []
    for index in range(len(replies)):
        logprobs = None
        if tokens_told(question):
            logprobs = form.logprobs(tokens.get(index, ()), form.length_before(index))
        reason = replies[index].reason(ends[index].reason)
        choices.append({"index": index, **form.choice(deltas[index]), "logprobs": logprobs, "finish_reason": reason})
    return choices


async def _streamed(listening, answer, question):
    """The events of a streamed response, as text."""
    form, count, ends = answer.form, listening.answers, []
    replies, lengths = [form.reply(index) for index in range(count)], [*map(form.length_before, range(count))]
    for index in range(count if form.begun() else 0):
        yield event_text(answer.chunk(index, form.begun()))
    async for event in listening.events():
        if isinstance(event, Failed):
            yield event_text(failure(event).body)
            return
        reply, logprobs = replies[event.answer], None
        if isinstance(event, Piece):
            if event.tokens:
                logprobs = form.logprobs(event.tokens, lengths[event.answer])
            lengths[event.answer] += len(event.text)
            said = reply.feed(event.text) or ([{}] if logprobs else [])
            for delta in said:
                yield event_text(answer.chunk(event.answer, form.piece(delta), logprobs=logprobs))
                logprobs = None
            continue
        for delta in reply.end(event.reason):
            yield event_text(answer.chunk(event.answer, form.piece(delta)))
        try:
            more = await _kept(question, event)
        except ApiError as error:
            yield event_text(error.body)
            return
        ends.append(event)
        yield event_text(answer.chunk(event.answer, form.piece({}), reply.reason(event.reason), more=more))
    if question.wanted.usage_wanted:
        yield event_text(answer.last(_usage(listening, ends)))
    yield "data: [DONE]\n\n"


async def _kept(question, done):
    """What a response has besides, of an answer of which something is kept."""
    return {} if done.place is None else await run_in_threadpool(question.kept, done)


def failure(event):
    """The ApiError of a `Failed`."""
    if event.status == 504:  # another try would take as long; OpenAI's client looks at the header
        return ApiError(504, event.message, code="timeout", headers={"X-Should-Retry": "false"})
    return ApiError(event.status, event.message)


def event_text(values):
    """An event of a stream."""
    return f"data: {json.dumps(values)}\n\n"


def _usage(listening, ends):
    cached = sum({listening.prompt_of(end.answer): end.cached for end in ends}.values())  # once for each prompt
    return usage(listening.read, sum(end.tokens for end in ends), cached)


async def _until_gone(request):
    """Return when whoever asked does not listen any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
