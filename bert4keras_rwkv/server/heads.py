"""HTTP with heads of bounded size: httptools takes them of any, before anybody has shown a key."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST = 1 << 16  # bytes of a request's line and headers, beyond one read from the socket


class BoundedHeads(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`: a connection whose head is longer is told so, and closed."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._head, self._in_head = 0, True

    def data_received(self, data):
        """Called by the event loop."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head += len(data)
            if self._head > LONGEST + len(data):
                self.send_400_response("The head of the request is too long.")
                return
        super().data_received(data)

    def on_message_begin(self):
        """Called by the parser."""
        self._head, self._in_head = 0, True
        super().on_message_begin()

    def on_headers_complete(self):
        """Called by the parser."""
        self._in_head = False
        super().on_headers_complete()
