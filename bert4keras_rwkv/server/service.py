"""From a request, checked, to what the scheduler is asked; and from how an answer ended to what is kept of it."""

import contextlib
import dataclasses
import functools
import hashlib
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.request import seeds
from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.asked import Asked
from bert4keras_rwkv.server.grammar import Grammars
from bert4keras_rwkv.server.listening import Bells
from bert4keras_rwkv.server.metrics import Metrics
from bert4keras_rwkv.server.places import Place
from bert4keras_rwkv.server.protocol import ApiError, parsed
from bert4keras_rwkv.server.states import NEW, SESSION, new_id
from bert4keras_rwkv.server.tools import turns_of
from bert4keras_rwkv.templates import conversation, end_of_reply, ids_of
from bert4keras_rwkv.tokenizers.prompts import token_ids, unix_lines
from bert4keras_rwkv.untrusted import shown

SHORT = 8192  # characters that are encoded without another thread
ENCODERS, GRAMMARS = anyio.CapacityLimiter(2), anyio.CapacityLimiter(4)  # at once, and apart from all else
SAMPLED = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "penalty_decay")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where what is asked begins. place: None, where every text begins. session: the id it is kept under, or None."""

    place: Place | None = None
    origin: str = ""
    session: str | None = None


@dataclasses.dataclass(frozen=True)
class Service:
    """What is served. name: of the model. template: of its conversations. longest: tokens of an answer at most, and of
    a chat's where nothing is said. longest_prompt: tokens. seconds: that an answer may take, None for no limit.
    states, seal: a `States` and a `Seal`, or None. embeddings: `Embeddings`, or None.
    """

    name: str
    scheduler: Any
    template: Any
    vocab_size: int
    access: Access = dataclasses.field(default_factory=Access)
    longest: int = 4096
    longest_prompt: int = 65536
    seconds: float | None = None
    states: Any = None
    seal: Any = None
    bells: Bells = dataclasses.field(default_factory=Bells)
    embeddings: Any = None

    @functools.cached_property
    def grammars(self):
        """What compiles the grammars of answers."""
        return Grammars(self.tokenizer, self.vocab_size, self.scheduler.ends)

    @functools.cached_property
    def metrics(self):
        """What Prometheus is told."""
        return Metrics(self.scheduler)

    @property
    def tokenizer(self):
        return self.scheduler.tokenizer

    def prepare(self):
        """Make now what the first request would wait for."""
        return self.grammars, self._longest_token

    @property
    def state_room(self):
        """Bytes of a body that a returned state may take."""
        return 0 if self.seal is None else self.seal.longest

    def check_model(self, name):
        """A 404 unless it is the model that is here, or none is named."""
        if name not in (None, self.name):
            message = f"The model {shown(name)} is not here. There is: '{self.name}'."
            raise ApiError(404, message, "model", "model_not_found")

    async def start(self, wanted, owner, stack):
        """The `Start` of a request. A session is held as long as `stack`, an AsyncExitStack."""
        named = [name for name in ("state", "session_id") if getattr(wanted, name) is not None]
        if len(named) > 1:
            raise ApiError(400, "`state` and `session_id` both say where to begin. Leave one out.", "state")
        if (named == ["session_id"] or wanted.return_state) and (wanted.n or 1) > 1:
            raise ApiError(400, "One answer is kept: `n` is 1 with `session_id` or `return_state`.", "n")
        if not named:
            return Start()
        if self.states is None:
            raise ApiError(400, f"This server keeps no states: leave `{named[0]}` out.", named[0])
        if wanted.session_id == NEW:
            return Start(session=new_id())
        if wanted.session_id is not None:
            self._check_session(wanted.session_id)
            await stack.enter_async_context(self.states.turn(wanted.session_id, owner))
            place = await run_in_threadpool(self.states.get, wanted.session_id, owner, "session_id")
        elif isinstance(wanted.state, str):
            place = await run_in_threadpool(self.states.get, wanted.state, owner, "state")
        else:
            place = await run_in_threadpool(self.seal.opened, wanted.state)
        return await self.start_in(place, wanted.session_id)

    async def start_in(self, place, session=None):
        """The `Start` in a place."""
        return Start(place, await run_in_threadpool(_digest, place.state), session)

    @staticmethod
    def _check_session(id):
        """A 404 unless it may be the id of a session: what is kept under other ids is not overwritten by an answer."""
        if not id.startswith(SESSION):
            message = f"There is no session {shown(id)}: one begins with `session_id` 'new', or as a fork of a state."
            raise ApiError(404, message, "session_id", "state_not_found")

    def chat_ids(self, messages, field, start, mode=None, tools=None, going_on=False):
        """The ids of a conversation, up to where the answer comes, and how many of them are what the system says first.
        Behind a place, of what is said there.

        field: of the request, that they stand in. going_on: whether the answer goes on with the last message.
        """
        self._check_length(sum(len(message.content) for message in messages), field)
        turns = turns_of(messages, self.template, tools, begun=start.place is not None)
        template = self.template
        end = template.unfinished(_begun(turns.pop())) if going_on else template.turn("assistant", mode=mode)
        if start.place is not None:
            parts = [part for turn in turns for part in template.turn(turn["role"], turn["content"])]
            return ids_of(self.tokenizer, parts + end), 0
        parts = conversation(turns, "the conversation", self.template)
        first = conversation(turns[:1], "the conversation", self.template) if _is_system(turns) else []
        shared = ids_of(self.tokenizer, first)
        return shared + ids_of(self.tokenizer, parts[len(first) :] + end), len(shared)

    def prompt_ids(self, prompt, field="prompt"):
        """The ids of a prompt, which is a str or ids. field: that it stands in."""
        if isinstance(prompt, str):
            self._check_length(len(prompt), field)
            return self.tokenizer.encode(unix_lines(prompt))
        return token_ids(prompt, self.vocab_size).tolist()

    async def constraint(self, wish, before="", tools=None):
        """What an answer has to follow, as `Asked` takes it; None for nothing.

        wish: a `Wish`, or None. before: text that comes before it. tools: `Tools`, which may be called instead, or
        None.
        """
        forced = tools is not None and tools.forced
        if wish is None and not forced:
            return None
        calls = tools and tools.grammar(self.template)
        if forced:
            return await in_thread(GRAMMARS, self.grammars.compiled, "lark", calls, "tools")
        more = {"before": before, "lenient": wish.lenient, "instead": calls}
        return await in_thread(GRAMMARS, self.grammars.compiled, wish.kind, wish.source, wish.field, **more)

    def opening(self, mode, wish=None):
        """What an answer of a mode begins with. A 400 for a mode that is not there, or does not go with a `Wish`."""
        with about("mode"):
            opening = self.template.mode(mode).opening
        if wish is not None and opening:
            message = f"`{wish.field}` is of the whole answer, which the mode '{mode}' begins already."
            raise ApiError(400, message, "mode")
        return opening

    def asked(self, wanted, start, ids, field, limit, *, stops, seed, key, constraint=None, shared=0):
        """What the scheduler is asked. field: what the ids came from. limit: tokens of an answer. key: who asks."""
        ids = (*(() if start.place is None else start.place.waiting), *ids)
        if not ids:
            raise ApiError(400, f"`{field}` has no token: give it at least one character.", field)
        if len(ids) > self.longest_prompt:
            message = f"`{field}` has {len(ids)} tokens, and may have {self.longest_prompt}."
            raise ApiError(400, message, field, "context_length_exceeded")
        outside = [token for token, _ in wanted.logit_bias if token >= self.vocab_size]
        if outside:
            message = f"`logit_bias` has ids below {self.vocab_size} as keys. Received: {outside[0]}."
            raise ApiError(400, message, "logit_bias")
        if (wanted.min_tokens or 0) > limit:
            message = f"`min_tokens` is at most the {limit} tokens of an answer. Received: {wanted.min_tokens}."
            raise ApiError(400, message, "min_tokens")
        given = {name: getattr(wanted, name) for name in SAMPLED}
        return Asked(
            ids,
            seeds(seed, wanted.n or 1),
            limit,
            Sampling(**{name: value for name, value in given.items() if value is not None}),
            stops,
            None if start.place is None else start.place.state,
            start.origin,
            key,
            self.seconds,
            wanted.min_tokens or 0,
            wanted.logit_bias,
            wanted.logprobs_wanted,
            constraint,
            keep=bool(start.session or wanted.return_state),
            shared=shared,
        )

    @functools.cached_property
    def _longest_token(self):
        """In bytes."""
        size = self.tokenizer.vocab_size
        written = set(range(size)).difference(self.tokenizer.without_text(size))
        return max((len(self.tokenizer.decode_bytes(token)) for token in written), default=0) or 1

    def _check_length(self, characters, field):
        """Refuse what has too many tokens however it is encoded, for encoding it takes seconds and much memory."""
        least = characters // self._longest_token
        if least > self.longest_prompt:
            message = f"`{field}` has at least {least} tokens, and may have {self.longest_prompt}."
            raise ApiError(400, message, field, "context_length_exceeded")

    def check_count(self, count):
        """A 400 for more answers than there can be at once."""
        if count > self.scheduler.most:
            message = f"`n` times the prompts are {count} answers, and {self.scheduler.most} is the most."
            raise ApiError(400, message, "n")

    def limit(self, tokens, field, usual):
        """Tokens of an answer."""
        if tokens is not None and tokens > self.longest:
            raise ApiError(400, f"`{field}` is at most {self.longest} here. Received: {tokens}.", field)
        return min(usual, self.longest) if tokens is None else tokens

    def kept(self, wanted, start, owner, done, chat):
        """Keep what was to be kept of an answer. Returns what the response has besides, a dict.

        done: a `Done`. chat: whether its turn of a conversation is closed.
        """
        if done.place is None:
            return {}
        place, more = self.place_behind(start, done, chat), {}
        if start.session is not None:
            self.states.put(start.session, owner, place, field="session_id")
            more["session_id"] = start.session
        if wanted.return_state:
            more["state"] = self.seal.sealed(place)
        return more

    def place_behind(self, start, done, chat):
        """The `Place` behind an answer that was asked for with `keep`. Arguments as for `kept`."""
        known = start.place.count - len(start.place.waiting) if start.place is not None else 0
        place = done.place._replace(count=known + done.place.count)
        if chat:
            return place.then(end_of_reply(self.tokenizer, self.template, done.ids, done.text))
        return place.then(self.tokenizer.encode(done.text[len(self.tokenizer.decode(done.ids)) :]))


@contextlib.contextmanager
def about(field):
    """A ValueError is about a field."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, f"`{field}`: {error}", field) from error


async def encoded(field, size, function, *given):
    """`function(*given)`, which encodes or decodes. A ValueError is about the field.

    size: of what is given, in characters or ids. What is long takes a while, and much memory: it is done in another
    thread, and not for many at once.
    """
    with about(field):
        if size <= SHORT:
            return function(*given)
        return await in_thread(ENCODERS, function, *given)


async def wanted_of(request, service, kind):
    """(the checked request, bytes of its body). kind: of `Fields`, with the name of a model."""
    body = await service.access.body(request, service.state_room)
    wanted = await parsed_body(kind, body)
    service.check_model(wanted.model)
    return wanted, len(body)


async def parsed_body(kind, body):
    """`protocol.parsed`, in another thread if it is long."""
    return parsed(kind, body) if len(body) <= SHORT else await in_thread(ENCODERS, parsed, kind, body)


async def in_thread(limiter, function, *given, **options):
    """`function(*given, **options)` in another thread, when the limiter lets it."""
    return await anyio.to_thread.run_sync(functools.partial(function, *given, **options), limiter=limiter)


def _begun(turn):
    """What the assistant has said in the last turn of a conversation, which is to be gone on with."""
    if turn["role"] != "assistant" or not turn["content"]:
        said = "`messages` ends with what the assistant has said so far, where `continue_final_message` is true."
        raise ApiError(400, said, "messages")
    return turn["content"]


def _is_system(turns):
    """Whether the system speaks first."""
    return bool(turns) and turns[0]["role"] == "system"


def _digest(state):
    """What a state is known by."""
    known = hashlib.blake2b(digest_size=16)
    for array in (state.wkv, state.shift):
        known.update(array.tobytes())
    return known.hexdigest()
