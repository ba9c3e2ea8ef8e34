"""A server of the process that tests run in."""

import contextlib
import socket
import threading

import uvicorn


@contextlib.contextmanager
def listening(app):
    """(host, port) where uvicorn serves an application, in a thread, as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()
