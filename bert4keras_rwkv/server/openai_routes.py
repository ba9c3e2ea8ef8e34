"""The routes of OpenAI's protocol that write, and what clients ask beside it."""

import contextlib

from fastapi import APIRouter, Request

from bert4keras_rwkv.server import protocol
from bert4keras_rwkv.server.answering import Question, answered
from bert4keras_rwkv.server.forms import ChatForm, CompletionForm, Reply
from bert4keras_rwkv.server.openapi import asks
from bert4keras_rwkv.server.protocol import ApiError, parsed
from bert4keras_rwkv.server.service import about, elsewhere

COMPLETION_TOKENS = 16  # of an answer, where nothing is said, as OpenAI has it


def openai_routes(service):
    """The routes, for who has a key."""
    router, access = APIRouter(), service.access

    @router.post("/chat/completions", openapi_extra=asks(protocol.ChatWanted, stream=True))
    async def chat(request: Request):
        wanted = parsed(protocol.ChatWanted, await access.body(request, service.state_room))
        service.check_model(wanted.model)
        async with contextlib.AsyncExitStack() as stack:
            return await answered(request, service, await _chat(request, service, wanted, stack), stack)

    @router.post("/completions", openapi_extra=asks(protocol.CompletionWanted, stream=True))
    async def completions(request: Request):
        wanted = parsed(protocol.CompletionWanted, await access.body(request, service.state_room))
        service.check_model(wanted.model)
        async with contextlib.AsyncExitStack() as stack:
            return await answered(request, service, await _completion(request, service, wanted, stack), stack)

    @router.get("/models")
    async def models():
        return {"object": "list", "data": [_model(service.name)]}

    @router.get("/models/{name:path}")
    async def model(name: str):
        service.check_model(name)
        return _model(service.name)

    @router.post("/tokenize", openapi_extra=asks(protocol.TextWanted))
    async def tokenize(request: Request):
        wanted = parsed(protocol.TextWanted, await access.body(request))
        text = wanted.content if wanted.prompt is None else wanted.prompt
        if text is None:
            raise ApiError(400, "`prompt`: the text to encode is missing.", "prompt")
        ids = await elsewhere("prompt", service.tokenizer.encode, text)
        return {"tokens": ids, "count": len(ids)}

    @router.post("/detokenize", openapi_extra=asks(protocol.IdsWanted))
    async def detokenize(request: Request):
        wanted = parsed(protocol.IdsWanted, await access.body(request))
        text = await elsewhere("tokens", service.tokenizer.decode, wanted.tokens)
        return {"prompt": text, "content": text}

    return router


async def _chat(request, service, wanted, stack):
    """The `Question` of a chat."""
    field = "max_tokens" if wanted.max_completion_tokens is None else "max_completion_tokens"
    limit = service.limit(getattr(wanted, field), field, service.longest)
    with about("mode"):
        opening = service.template.mode(wanted.mode).opening
    owner = service.access.owner(request)
    start = await service.start(wanted, owner, stack)
    ids = await elsewhere("messages", service.chat_ids, wanted, start)
    stops = (*wanted.stop, *service.template.stop_texts)
    key = service.access.asker(request)
    asked = service.asked(wanted, start, ids, "messages", limit, stops=stops, seed=wanted.seed, key=key)
    form = ChatForm(service.tokenizer, lambda index: Reply(opening))
    return Question(wanted, [asked], form, lambda done: service.kept(wanted, start, owner, done, chat=True))


async def _completion(request, service, wanted, stack):
    """The `Question` of a completion, or of several."""
    limit = service.limit(wanted.max_tokens, "max_tokens", COMPLETION_TOKENS)
    owner, key = service.access.owner(request), service.access.asker(request)
    start = await service.start(wanted, owner, stack)
    if len(wanted.prompt) > 1 and (start.session or wanted.return_state):
        raise ApiError(400, "One answer is kept: with `session_id` or `return_state` there is one prompt.", "prompt")
    several, each = [], wanted.n or 1
    for number, prompt in enumerate(wanted.prompt):
        ids = await elsewhere("prompt", service.prompt_ids, prompt)
        seed = None if wanted.seed is None else wanted.seed + number * each
        several.append(service.asked(wanted, start, ids, "prompt", limit, stops=wanted.stop, seed=seed, key=key))
    echo = [_text(service, prompt) if wanted.echo else "" for prompt in wanted.prompt for _ in range(each)]
    form = CompletionForm(service.tokenizer, echo)
    return Question(wanted, several, form, lambda done: service.kept(wanted, start, owner, done, chat=False))


def _text(service, prompt):
    return prompt if isinstance(prompt, str) else service.tokenizer.decode(prompt)


def _model(name):
    return {"id": name, "object": "model", "created": 0, "owned_by": "bert4keras_rwkv"}
