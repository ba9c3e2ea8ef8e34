"""From a model to a `Service` that answers, for the command line and for whoever runs the application elsewhere."""

import dataclasses
import secrets
from pathlib import Path

from bert4keras_rwkv.models.embedder import Embedder
from bert4keras_rwkv.models.fingerprint import fingerprint
from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.cache import StateCache
from bert4keras_rwkv.server.embeddings import Embeddings
from bert4keras_rwkv.server.scheduler import Scheduler
from bert4keras_rwkv.server.seal import Seal, read_key
from bert4keras_rwkv.server.service import Service
from bert4keras_rwkv.server.state_files import StateKind
from bert4keras_rwkv.server.states import States
from bert4keras_rwkv.templates import template_for, template_of


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much is served. max_batch, queue: answers that are written, and that wait. max_tokens: of an answer.
    max_prompt: tokens. seconds: that an answer may take, None for no limit.
    """

    max_batch: int = 16
    queue: int = 64
    max_tokens: int = 4096
    max_prompt: int = 65536
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Remembering:
    """What is remembered of texts. folder: for states that outlast the server, None: in memory only. memory, disk:
    bytes of the cache, 0 for none. dtype: of what the cache keeps. named: id -> path of a state in which texts may
    begin. key: path of the key that signs returned states, None: one of this server alone.
    """

    folder: Path | None = None
    memory: int = 2 << 30
    disk: int = 20 << 30
    dtype: str = "float32"
    named: dict = dataclasses.field(default_factory=dict)
    key: Path | None = None


def begin_service(rwkv, template=None, access=None, limits=None, remembering=None, report=lambda done, total: None):
    """The `Service` of a model with a tokenizer, whose scheduler has started when this returns.

    template: a `Template`, None: the model's. access: an `Access`, None: anybody's. limits: a `Limits`. remembering: a
    `Remembering`. report: called with how many programs are compiled.
    """
    limits, remembering = limits or Limits(), remembering or Remembering()
    origin, config = rwkv.origin, rwkv.config
    template = template or template_of(template_for(origin.name, origin.template, config.vocab_size))
    kind = StateKind(fingerprint(rwkv), config, rwkv.backbone.compute_dtype)
    states, seal = _states(rwkv, remembering, kind)
    cache = _cache(remembering, kind)
    scheduler = Scheduler(rwkv, limits.max_batch, limits.queue, cache=cache)
    scheduler.start(report)
    embedder = Embedder(rwkv.backbone, rwkv.state_for(None, 1))
    embedder.compile()
    name = origin.name or config.model
    bounds = limits.max_tokens, limits.max_prompt, limits.seconds
    service = Service(
        name,
        scheduler,
        template,
        config.vocab_size,
        access or Access(),
        *bounds,
        states,
        seal,
        embeddings=Embeddings(embedder, lambda: scheduler.running or scheduler.waiting),
    )
    service.prepare()
    service.metrics.level("rwkv_states", "States that are kept under an id.", lambda: states.count)
    if cache is not None:
        service.metrics.watch_cache(cache)
    return service


def _states(rwkv, remembering, kind):
    """The `States` and the `Seal`."""
    named = {id: rwkv.load_state(path) for id, path in remembering.named.items()}
    folder = None if remembering.folder is None else Path(remembering.folder, "states")
    key = secrets.token_bytes(32) if remembering.key is None else read_key(remembering.key)
    return States(kind, folder, named), Seal(key, kind)


def _cache(remembering, kind):
    """The `StateCache`, None if there is to be none."""
    folder = None if remembering.folder is None or not remembering.disk else Path(remembering.folder, "prefixes")
    if folder is None and not remembering.memory:
        return None
    return StateCache(
        kind.fingerprint, kind.config, remembering.memory, folder, remembering.disk, dtype=remembering.dtype
    )
