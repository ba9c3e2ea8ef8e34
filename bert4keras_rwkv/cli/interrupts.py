"""Ctrl-C as a request, where what was done so far is to be kept."""

import signal
import threading


class Interrupts:
    """While it lasts, a first Ctrl-C is a request to stop, `asked`; a second one raises KeyboardInterrupt as ever.

    A KeyboardInterrupt can come between a piece of text and its being shown. Who looks at `asked` between two pieces
    stops where what is shown and what is remembered are the same. Outside the main thread, which alone hears of
    signals, nothing changes.
    """

    def __init__(self):
        self.asked, self._before = False, None

    def __enter__(self):
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *exception):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _hear(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def until(self, pieces):
        """The items of an iterator, until somebody asks to stop."""
        for piece in pieces:
            yield piece
            if self.asked:
                return
