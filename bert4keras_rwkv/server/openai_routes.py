"""The routes of OpenAI's protocol that write, and what clients ask beside it."""

import contextlib

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from bert4keras_rwkv.server import protocol
from bert4keras_rwkv.server.answering import Question, answered
from bert4keras_rwkv.server.calls import CallReply
from bert4keras_rwkv.server.constraints import ChatWanted, CompletionWanted
from bert4keras_rwkv.server.forms import ChatForm, CompletionForm, Reply
from bert4keras_rwkv.server.openapi import asks
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.service import encoded, parsed_body, wanted_of
from bert4keras_rwkv.server.tools import tools_of

COMPLETION_TOKENS = 16  # of an answer, where nothing is said, as OpenAI has it


def openai_routes(service):
    """The routes, for who has a key."""
    router, access = APIRouter(), service.access

    @router.post("/chat/completions", openapi_extra=asks(ChatWanted, stream=True))
    async def chat(request: Request):
        wanted, size = await wanted_of(request, service, ChatWanted)
        async with contextlib.AsyncExitStack() as stack:
            question = await _chat(request, service, wanted, size, stack)
            return await answered(request, service, question, stack)

    @router.post("/completions", openapi_extra=asks(CompletionWanted, stream=True))
    async def completions(request: Request):
        wanted, size = await wanted_of(request, service, CompletionWanted)
        async with contextlib.AsyncExitStack() as stack:
            question = await _completion(request, service, wanted, size, stack)
            return await answered(request, service, question, stack)

    @router.get("/models")
    async def models():
        return {"object": "list", "data": [_model(service)]}

    @router.get("/models/{name:path}")
    async def model(name: str):
        service.check_model(name)
        return _model(service)

    @router.post("/tokenize", openapi_extra=asks(protocol.TextWanted))
    async def tokenize(request: Request):
        wanted = await parsed_body(protocol.TextWanted, await access.body(request))
        text = wanted.content if wanted.prompt is None else wanted.prompt
        if text is None:
            raise ApiError(400, "`prompt`: the text to encode is missing.", "prompt")
        ids = await encoded("prompt", len(text), service.tokenizer.encode, text)
        return await encoded("prompt", len(ids), JSONResponse, {"tokens": ids, "count": len(ids)})

    @router.post("/detokenize", openapi_extra=asks(protocol.IdsWanted))
    async def detokenize(request: Request):
        wanted = await parsed_body(protocol.IdsWanted, await access.body(request))
        text = await encoded("tokens", len(wanted.tokens), service.tokenizer.decode, wanted.tokens)
        return await encoded("tokens", len(text), JSONResponse, {"prompt": text, "content": text})

    return router


async def _chat(request, service, wanted, size, stack):
    """The `Question` of a chat. size: bytes of the body."""
    service.check_count(wanted.n or 1)
    field = "max_tokens" if wanted.max_completion_tokens is None else "max_completion_tokens"
    limit = service.limit(getattr(wanted, field), field, service.longest)
    template, owner, key = service.template, service.access.owner(request), service.access.asker(request)
    tools, wish = tools_of(wanted, template), wanted.wish
    mode = tools.mode(template) if tools and tools.forced else wanted.mode
    if (wish or tools) and wanted.continue_final_message:
        message = "An answer of a form, or with tools, is written from its beginning: leave the one or the other out."
        raise ApiError(400, message, "continue_final_message")
    opening = service.opening(mode, wish)
    constraint = await service.constraint(wish, template.before_reply, tools)
    start = await service.start(wanted, owner, stack)
    going_on = bool(wanted.continue_final_message)
    ids, shared = await encoded(
        "messages", size, service.chat_ids, wanted.messages, "messages", start, mode, tools, going_on
    )
    stops = (*wanted.stop, *template.stop_texts)
    more = {"stops": stops, "seed": wanted.seed, "key": key, "constraint": constraint, "shared": shared}
    asked = service.asked(wanted, start, ids, "messages", limit, **more)

    def reply(index):
        if tools is None:
            return Reply("" if going_on else opening, going_on)
        return CallReply(tools.names, opening, template.thought, tools.parallel)

    form = ChatForm(service.tokenizer, reply)
    return Question(wanted, [asked], form, lambda done: service.kept(wanted, start, owner, done, chat=True))


async def _completion(request, service, wanted, size, stack):
    """The `Question` of a completion, or of several. size: bytes of the body."""
    service.check_count(len(wanted.prompt) * (wanted.n or 1))
    limit = service.limit(wanted.max_tokens, "max_tokens", COMPLETION_TOKENS)
    owner, key = service.access.owner(request), service.access.asker(request)
    start = await service.start(wanted, owner, stack)
    if len(wanted.prompt) > 1 and (start.session or wanted.return_state):
        raise ApiError(400, "One answer is kept: with `session_id` or `return_state` there is one prompt.", "prompt")
    constraint = await service.constraint(wanted.wish)
    several, each = [], wanted.n or 1
    for number, prompt in enumerate(wanted.prompt):
        ids = await encoded("prompt", size, service.prompt_ids, prompt)
        seed = None if wanted.seed is None else wanted.seed + number * each
        more = {"stops": wanted.stop, "seed": seed, "key": key, "constraint": constraint}
        several.append(service.asked(wanted, start, ids, "prompt", limit, **more))
    echo = [_text(service, prompt) if wanted.echo else "" for prompt in wanted.prompt for _ in range(each)]
    form = CompletionForm(service.tokenizer, echo)
    return Question(wanted, several, form, lambda done: service.kept(wanted, start, owner, done, chat=False))


def _text(service, prompt):
    return prompt if isinstance(prompt, str) else service.tokenizer.decode(prompt)


def _model(service):
    """What is said of the model. modes: in which it can answer, where its template has any."""
    modes = {"modes": list(service.template.modes)} if service.template.modes else {}
    return {"id": service.name, "object": "model", "created": 0, "owned_by": "bert4keras_rwkv", **modes}
