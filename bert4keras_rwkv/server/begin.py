"""From a model to a `Service` that answers, for the command line and for whoever runs the application elsewhere."""

from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.app import Service
from bert4keras_rwkv.server.scheduler import Scheduler
from bert4keras_rwkv.templates import template_for, template_of


def begin_service(
    rwkv,
    template=None,
    access=None,
    max_batch=16,
    queue=64,
    max_tokens=4096,
    max_prompt=65536,
    report=lambda done, total: None,
):
    """The `Service` of a model with a tokenizer, whose scheduler has started when this returns.

    template: a `Template`, None: the model's. access: an `Access`, None: anybody's. max_batch, queue: of the
    `Scheduler`. max_tokens: of an answer. max_prompt: tokens. report: called with how many programs are compiled.
    """
    origin, vocab_size = rwkv.origin, rwkv.config.vocab_size
    template = template or template_of(template_for(origin.name, origin.template, vocab_size))
    scheduler = Scheduler(rwkv, max_batch, queue)
    scheduler.start(report)
    name = origin.name or rwkv.config.model
    return Service(name, scheduler, template, vocab_size, access or Access(), max_tokens, max_prompt)
