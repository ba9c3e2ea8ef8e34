"""Vectors of texts, computed beside the scheduler, piece by piece; and their route."""

import asyncio
import base64
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import Field

from bert4keras_rwkv.models.embedder import SIZES
from bert4keras_rwkv.server.answering import unless_gone
from bert4keras_rwkv.server.openapi import asks
from bert4keras_rwkv.server.protocol import ApiError, Fields, Prompts
from bert4keras_rwkv.server.service import encoded, wanted_of

INPUTS = 2048  # texts of a request at most
TOKENS = 300_000  # of all of them
LINE = 32  # requests at once


class EmbeddingWanted(Fields):
    """Of /v1/embeddings."""

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class Embeddings:
    """Vectors for many who ask. One piece is computed at a time, and after each it is the next one's turn.

    embedder: a `models.embedder.Embedder` that is compiled. busy: a function that says whether answers are being
    written; pieces are short then.
    """

    def __init__(self, embedder, busy):
        self.width = embedder.width
        self._embedder, self._busy, self._turn, self._asking = embedder, busy, asyncio.Lock(), 0

    async def vectors(self, rows):
        """(D,) float32 for each row of ids. ApiError 429 if too many ask, 500 where numbers are not finite."""
        if self._asking >= LINE:
            message = f"{LINE} requests for embeddings are under way. Ask again a little later."
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"})
        self._asking += 1
        try:
            return [await self._vector(ids) for ids in rows]
        finally:
            self._asking -= 1

    async def _vector(self, ids):
        read, at = self._embedder.begin(), 0
        while at < len(ids):
            async with self._turn:
                size = SIZES[0] if self._busy() else SIZES[-1]
                read = await run_in_threadpool(self._embedder.read, read, ids[at : at + size])
            at += size
        try:
            return self._embedder.vector(read)
        except ValueError as error:
            raise ApiError(500, str(error)) from error


def embedding_routes(service):
    """The route /embeddings of a `Service` that has `embeddings`."""
    router = APIRouter()

    @router.post("/embeddings", openapi_extra=asks(EmbeddingWanted))
    async def embeddings(request: Request):
        wanted, size = await wanted_of(request, service, EmbeddingWanted)
        _check_width(wanted.dimensions, service.embeddings.width)
        rows = await encoded("input", size, _rows, service, wanted.input)
        return await unless_gone(request, _told(service, wanted, rows))

    return router


def _check_width(wanted, width):
    if wanted not in (None, width):
        message = f"`dimensions`: the vectors of this model have {width}. Received: {wanted}."
        raise ApiError(400, message, "dimensions")


def _rows(service, inputs):
    """The ids of each text, lists. Raises ValueError or ApiError."""
    if len(inputs) > INPUTS:
        raise ValueError(f"at most {INPUTS} texts are expected. Received: {len(inputs)}")
    rows, total = [], 0
    for text in inputs:
        ids = service.prompt_ids(text, "input")
        if not ids:
            raise ValueError("a text has at least one token")
        if len(ids) > service.longest_prompt:
            message = f"`input` has a text of {len(ids)} tokens, and {service.longest_prompt} is the most."
            raise ApiError(400, message, "input", "context_length_exceeded")
        rows.append(ids)
        total += len(ids)
        if total > TOKENS:
            raise ValueError(f"all texts together have at most {TOKENS} tokens")
    return rows


async def _told(service, wanted, rows):
    """The response."""
    try:
        async with asyncio.timeout(service.seconds):
            vectors = await service.embeddings.vectors(rows)
    except TimeoutError as error:
        raise ApiError(504, f"The vectors took longer than {service.seconds} seconds.", code="timeout") from error
    shown = _as_base64 if wanted.encoding_format == "base64" else _as_numbers
    data = [{"object": "embedding", "index": i, "embedding": shown(one)} for i, one in enumerate(vectors)]
    read = sum(map(len, rows))
    usage = {"prompt_tokens": read, "total_tokens": read}
    return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})


def _as_numbers(vector):
    return vector.tolist()


def _as_base64(vector):
    """The numbers as little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
