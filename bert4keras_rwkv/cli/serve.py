"""`serve`: a model that answers over HTTP in OpenAI's form, until it is told to stop."""

import contextlib
import signal
import socket
import sys

from bert4keras_rwkv.cli.generate import load_to_write, named_template
from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.tokenizers import load_tokenizer

try:
    import fastapi  # noqa: F401
    import llguidance  # noqa: F401
    import prometheus_client  # noqa: F401

    from bert4keras_rwkv.server.access import LOCAL_NAMES, Access, is_loopback, read_keys
    from bert4keras_rwkv.server.graceful import GracefulServer
except ModuleNotFoundError as missing:
    raise ImportError(
        f"`serve` needs what its extra installs ({missing}): pip install 'bert4keras_rwkv[serve]'."
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
        from bert4keras_rwkv.server.app import make_app
        from bert4keras_rwkv.server.begin import Limits, Remembering, begin_service

        a, access = arguments, Access(keys, LOCAL_NAMES if local else None)
        limits = Limits(a.max_batch, a.queue, a.max_tokens, a.max_prompt, a.time_limit)
        named = dict(a.states or ())
        remembering = Remembering(a.cache, a.cache_memory, a.cache_disk, a.cache_dtype, named, a.state_key_file)
        with Bar("compiling", "program") as bar:
            service = begin_service(rwkv, template, access, limits, remembering, report=bar)
        options = {"log_level": "warning", "server_header": False}
        server = GracefulServer(make_app(service), service.scheduler, arguments.stop_within, **options)
        listener.listen()
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        say(f"Serving {service.name} at http://{host}:{port}/v1. Chat at http://{host}:{port}/. Ctrl-C stops it.")
        if not local and keys is None:
            say("Whoever reaches this address may use it: --api-key-file asks for a key.")
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has stopped, which is the end
        server.run(sockets=[listener])


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
