"""The routes of states: list, upload, describe, download, seal, fork, delete."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import Field

from bert4keras_rwkv.server.access import JSON, read_body
from bert4keras_rwkv.server.openapi import asks, gives
from bert4keras_rwkv.server.protocol import ApiError, Fields, parsed
from bert4keras_rwkv.server.state_files import packed, read_file, told_of
from bert4keras_rwkv.server.states import NO_ROOM, UPLOADED, new_id
from bert4keras_rwkv.weights.states import LAYOUTS

OCTETS = "application/octet-stream"
Layout = Literal[LAYOUTS]
LARGEST_FORK = 1 << 16  # bytes of a body without a state


class StateWanted(Fields):
    """Of POST /states: a returned state, or the id of one that is to be kept under another id too."""

    id: str | None = None
    state: Any = None
    origin: str | None = Field(None, alias="from")


class ForkWanted(Fields):
    """Of POST /states/{id}/fork."""

    id: str | None = None


def state_routes(states, seal, owner_of):
    """An APIRouter. states: `States`. seal: a `Seal` of the same kind. owner_of: from a request to its owner, a str."""
    routes, kind = APIRouter(), states.kind

    @routes.get("/states")
    async def listed(request: Request):
        return {"object": "list", "data": await run_in_threadpool(states.list, owner_of(request))}

    @routes.post("/states", openapi_extra=asks(StateWanted, OCTETS))
    async def kept(request: Request, id: str | None = None, layout: Layout = "auto"):
        type_, body = await read_body(request, max(seal.longest, kind.largest) + LARGEST_FORK, JSON, OCTETS)
        keep = _keep_file if type_ == OCTETS else _keep_wanted
        return await run_in_threadpool(keep, states, seal, owner_of(request), body, id, layout)

    @routes.get("/states/{id}")
    async def described(request: Request, id: str):
        return await run_in_threadpool(states.about, id, owner_of(request))

    @routes.get("/states/{id}/download", responses=gives(OCTETS), response_class=Response)
    async def downloaded(request: Request, id: str):
        place = await run_in_threadpool(states.get, id, owner_of(request))
        headers = {"Content-Disposition": f'attachment; filename="{id}.safetensors"'}
        return Response(await run_in_threadpool(packed, place, kind), media_type=OCTETS, headers=headers)

    @routes.get("/states/{id}/sealed")
    async def sealed(request: Request, id: str):
        place = await run_in_threadpool(states.get, id, owner_of(request))
        return await run_in_threadpool(seal.sealed, place)

    @routes.post("/states/{id}/fork", openapi_extra=asks(ForkWanted))
    async def forked(request: Request, id: str):
        _, body = await read_body(request, LARGEST_FORK, JSON)
        return await run_in_threadpool(states.fork, id, owner_of(request), parsed(ForkWanted, body).id)

    @routes.delete("/states/{id}")
    async def deleted(request: Request, id: str):
        owner = owner_of(request)
        async with states.turn(id, owner):  # what is being written there would be kept afterwards
            await run_in_threadpool(states.delete, id, owner)
        return {"id": id, "object": "state.deleted", "deleted": True}

    return routes


def _keep_file(states, seal, owner, body, id, layout):
    """Keep the state in the bytes of a file. Returns what is said of it."""
    try:
        place = told_of("body", read_file, body, states.kind, layout)
    except OSError as error:
        said = f"The state cannot be read, for it is written to a file before: {error.strerror or error}."
        raise ApiError(NO_ROOM, said, "body", "insufficient_storage") from error
    return states.add(new_id(UPLOADED) if id is None else id, owner, place)


def _keep_wanted(states, seal, owner, body, id, layout):
    """Keep what a `StateWanted` says. Returns what is said of it."""
    wanted = parsed(StateWanted, body)
    id = wanted.id if id is None else id
    if (wanted.state is None) == (wanted.origin is None):
        raise ApiError(400, "Either `state`, as it was returned, or `from`, an id, is expected.", "state")
    if wanted.origin is not None:
        return states.fork(wanted.origin, owner, id, "from")
    return states.add(new_id(UPLOADED) if id is None else id, owner, seal.opened(wanted.state))
