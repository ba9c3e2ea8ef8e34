"""The server as a FastAPI application: its routes, and what is answered when something is wrong."""

import asyncio
import contextlib

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bert4keras_rwkv import __version__
from bert4keras_rwkv.server.answering import GONE
from bert4keras_rwkv.server.embeddings import embedding_routes
from bert4keras_rwkv.server.health_routes import health_routes
from bert4keras_rwkv.server.memory import give_back_for_ever
from bert4keras_rwkv.server.metrics import Measured
from bert4keras_rwkv.server.openai_routes import openai_routes
from bert4keras_rwkv.server.openapi import openapi_route
from bert4keras_rwkv.server.page_routes import page_routes
from bert4keras_rwkv.server.protocol import ApiError, refused
from bert4keras_rwkv.server.responses_routes import responses_routes
from bert4keras_rwkv.server.state_routes import state_routes


def make_app(service):
    """The application of a `Service`. Its scheduler is stopped with it, and has to be started before."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        memory = asyncio.create_task(give_back_for_ever())
        yield
        memory.cancel()
        await run_in_threadpool(service.scheduler.stop, 0.0)  # what was to be finished is, by now

    app = FastAPI(
        title="bert4keras_rwkv", version=__version__, lifespan=lifespan, openapi_url=None, redirect_slashes=False
    )
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _told_by_starlette)
    app.add_exception_handler(RequestValidationError, _told_by_fastapi)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
    for prefix in ("/v1", ""):
        app.include_router(_routes(service), prefix=prefix)
    app.include_router(openapi_route(app), dependencies=[Depends(_async(service.access.check_host))])
    app.include_router(page_routes(), dependencies=[Depends(_async(service.access.check_host))])
    return app


def _routes(service):
    access = service.access
    open_to_all = APIRouter(dependencies=[Depends(_async(access.check_host))])
    router = APIRouter(dependencies=[Depends(_async(access.check_key))])

    router.include_router(openai_routes(service))
    router.include_router(responses_routes(service))
    if service.embeddings is not None:
        router.include_router(embedding_routes(service))
    if service.states is not None:
        router.include_router(state_routes(service.states, service.seal, access.owner))
    open_to_all.include_router(health_routes(service))
    open_to_all.include_router(router)
    return open_to_all


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


async def _told_by_fastapi(request, error):
    return await _told(request, refused(error.errors(), 1))


async def _gone(request, error):
    return Response(status_code=GONE)


async def _unexpected(request, error):
    return JSONResponse(ApiError(500, "The server made a mistake, which its log tells of.").body, 500)
