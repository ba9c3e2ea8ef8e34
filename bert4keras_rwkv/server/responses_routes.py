"""The routes of responses: a conversation whose last state stays on the server, under the id of its last response."""

import contextlib
import dataclasses
import logging

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.responses import Response as HttpResponse

from bert4keras_rwkv.server.access import JSON
from bert4keras_rwkv.server.answering import Stream, failure, listening_to, unless_gone
from bert4keras_rwkv.server.asked import Failed, Piece
from bert4keras_rwkv.server.forms import Reply
from bert4keras_rwkv.server.openapi import asks
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.responses import Response, ResponseWanted, as_note
from bert4keras_rwkv.server.service import encoded, wanted_of
from bert4keras_rwkv.server.states import RESPONSE, new_id
from bert4keras_rwkv.untrusted import shown

logger = logging.getLogger("bert4keras_rwkv")


def responses_routes(service):
    """The routes of a `Service`, for who has a key."""
    router, access = APIRouter(), service.access

    @router.post("/responses", openapi_extra=asks(ResponseWanted, stream=True))
    async def created(request: Request):
        wanted, size = await wanted_of(request, service, ResponseWanted)
        async with contextlib.AsyncExitStack() as stack:
            writing = await _begun(request, service, wanted, size, stack)
            if wanted.stream:
                return Stream(writing.events(), stack.pop_all())
            return await unless_gone(request, writing.whole())

    @router.get("/responses/{id}")
    async def described(request: Request, id: str):
        with _of_responses(id):
            note = await run_in_threadpool(_states(service, id).note, id, access.owner(request))
        if not note:
            raise _unknown(id)
        return HttpResponse(note, media_type=JSON)

    @router.delete("/responses/{id}")
    async def deleted(request: Request, id: str):
        with _of_responses(id):
            await run_in_threadpool(_states(service, id).delete, id, access.owner(request))
        return {"id": id, "object": "response", "deleted": True}

    return router


class Writing:
    """A response that is being written. listening: a `Listening` to its one answer. reply: a `Reply`. keep: a function
    that keeps what is to be kept of a `Done`, of the response then, and returns that.
    """

    def __init__(self, response, listening, reply, keep):
        self._response, self._listening, self._reply, self._keep = response, listening, reply, keep
        self._text, self._done = "", None

    async def whole(self):
        """The response when it has ended."""
        async for _ in self._pieces():
            pass
        return JSONResponse(await self._ended())

    async def events(self):
        """The events of a stream, as text."""
        for event in self._response.opening():
            yield event
        try:
            async for text in self._pieces():
                yield self._response.delta(text)
            ended = await self._ended()
        except ApiError as error:
            yield self._response.failed(error)
            return
        for event in self._response.closing(ended, self._text):
            yield event

    async def _pieces(self):
        """The text as it comes. Raises ApiError if it cannot go on."""
        async for event in self._listening.events():
            if isinstance(event, Failed):
                raise failure(event)
            if isinstance(event, Piece):
                deltas = self._reply.feed(event.text)
            else:
                deltas, self._done = self._reply.end(event.reason), event
            for text in filter(None, (delta.get("content") for delta in deltas)):
                self._text += text
                yield text

    async def _ended(self):
        ended = self._response.ended(self._done, self._text, self._listening.read)
        return await run_in_threadpool(self._keep, self._done, ended)


async def _begun(request, service, wanted, size, stack):
    """The `Writing` of a request. size: bytes of its body."""
    limit = service.limit(wanted.max_output_tokens, "max_output_tokens", service.longest)
    template, wish = service.template, wanted.wish
    opening = service.opening(wanted.mode, wish)
    constraint = await service.constraint(wish, template.before_reply)
    owner, key = service.access.owner(request), service.access.asker(request)
    start = await _start(service, wanted, owner, stack)
    ids, shared = await encoded("input", size, service.chat_ids, wanted.messages, "input", start, wanted.mode)
    stops = (*wanted.stop, *template.stop_texts)
    more = {"stops": stops, "seed": wanted.seed, "key": key, "constraint": constraint, "shared": shared}
    asked = service.asked(wanted, start, ids, "input", limit, **more)
    listening = listening_to(service, [asked])
    stack.callback(listening.leave)
    id = start.session or new_id(RESPONSE)
    response = Response(id, wanted, service.name, start.session is not None)
    return Writing(
        response, listening, Reply(opening), lambda done, ended: _kept(service, wanted, start, owner, done, ended)
    )


async def _start(service, wanted, owner, stack):
    """The `Start` of a request. Its session is the response's own id, None if it is not to be kept."""
    previous = wanted.previous_response_id
    if previous is None:
        start = await service.start(wanted, owner, stack)
    elif wanted.state is not None:
        raise ApiError(400, "`previous_response_id` and `state` both say where to begin. Leave one out.", "state")
    else:
        states = _states(service, previous, "previous_response_id")
        with _of_responses(previous, "previous_response_id"):
            place = await run_in_threadpool(states.get, previous, owner, "previous_response_id")
        start = await service.start_in(place)
    stored = wanted.store is not False and service.states is not None
    return dataclasses.replace(start, session=new_id(RESPONSE) if stored else None)


def _kept(service, wanted, start, owner, done, ended):
    """Keep what is to be kept of a response that has ended. Returns it with what was asked for besides."""
    if done.place is None:
        return ended
    place, more = service.place_behind(start, done, chat=True), {}
    if start.session is not None:
        note, previous = as_note(ended), wanted.previous_response_id
        try:
            service.states.put(start.session, owner, place, previous, "store", note)
        except ApiError as error:  # the text is there all the same
            logger.warning("A response is not kept: %s", error)
            more["store"] = False
    if wanted.return_state:
        more["state"] = service.seal.sealed(place)
    return ended | more


def _states(service, id, field="id"):
    """The `States`, for the id of a response."""
    if service.states is None or not id.startswith(RESPONSE):
        raise _unknown(id, field)
    return service.states


@contextlib.contextmanager
def _of_responses(id, field="id"):
    """A state that is not there is a response that is not."""
    try:
        yield
    except ApiError as error:
        if error.status != 404:
            raise
        raise _unknown(id, field) from error


def _unknown(id, field="id"):
    return ApiError(404, f"There is no response {shown(id)}.", field, "response_not_found")
