"""A stream of text that ends where one of some texts begins."""


class Until:
    """Passes text on up to the first of `stops`; what may become one of them waits until that is known."""

    def __init__(self, stops):
        self._stops = [stop for stop in stops if stop]
        self._waiting = ""
        self.found = False

    def feed(self, text):
        """The text that is known to come before any stop. Nothing more once one is found."""
        if self.found:
            return ""
        text = self._waiting + text
        places = [place for place in map(text.find, self._stops) if place >= 0]
        if places:
            self.found, self._waiting = True, ""
            return text[: min(places)]
        kept = max(
            (length for stop in self._stops for length in range(1, len(stop)) if text.endswith(stop[:length])),
            default=0,
        )
        self._waiting = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self):
        """What still waits when nothing more comes."""
        rest, self._waiting = self._waiting, ""
        return rest
