"""`serve`: a model that answers over HTTP in OpenAI's form, until it is told to stop."""

import contextlib
import signal
import socket
import sys

from bert4keras_rwkv.cli.generate import load_to_write, named_template
from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.templates import template_for, template_of
from bert4keras_rwkv.tokenizers import load_tokenizer

try:
    import fastapi  # noqa: F401
    import uvicorn

    from bert4keras_rwkv.server.access import LOCAL_NAMES, Access, is_loopback, read_keys
except ModuleNotFoundError as missing:
    raise ImportError(
        f"`serve` needs FastAPI and uvicorn ({missing}): pip install 'bert4keras_rwkv[serve]'."
    ) from missing


def run(arguments):
    """Bind the port, load the model, compile, and serve."""
    keys = None if arguments.api_key_file is None else read_keys(arguments.api_key_file)
    template = None if arguments.template in (None, "auto") else named_template(arguments.template)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    local = is_loopback(arguments.host)
    with contextlib.closing(bound(arguments.host, arguments.port)) as listener:
        rwkv = load_to_write(arguments, tokenizer)
        if arguments.adapter is not None:
            rwkv.load_adapter(arguments.adapter)
        service = begun(arguments, rwkv, template, Access(keys, LOCAL_NAMES if local else None))
        from bert4keras_rwkv.server.app import make_app

        config = uvicorn.Config(
            make_app(service), log_level="warning", server_header=False, timeout_graceful_shutdown=arguments.stop_within
        )
        listener.listen()
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        say(f"Serving {service.name} at http://{host}:{port}/v1. Ctrl-C stops it.")
        if not local and keys is None:
            say("Whoever reaches this address may use it: --api-key-file asks for a key.")
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has stopped, which is the end
        uvicorn.Server(config).run(sockets=[listener])


def begun(arguments, rwkv, template, access):
    """The `Service`, whose scheduler has started."""
    from bert4keras_rwkv.server.scheduler import Scheduler
    from bert4keras_rwkv.server.service import Service

    origin, vocab_size = rwkv.origin, rwkv.config.vocab_size
    scheduler = Scheduler(rwkv, arguments.max_batch, arguments.queue)
    with Bar("compiling", "program") as bar:
        scheduler.start(bar)
    return Service(
        origin.name or rwkv.config.model,
        scheduler,
        template or template_of(template_for(origin.name, origin.template, vocab_size)),
        vocab_size,
        access,
        arguments.max_tokens,
        arguments.max_prompt,
    )


def bound(host, port):
    """A socket that has the address, before a model is loaded for it."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OSError(f"Nothing is served at {host}, port {port}: {error.strerror}. --port names another.") from error
    return listener


def say(text):
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
