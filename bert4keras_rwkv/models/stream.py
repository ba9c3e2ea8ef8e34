"""What is written, handed out piece by piece."""

from bert4keras_rwkv.models.writer import Writing


class Stream:
    """The answer to one prompt, an iterator that may be left at any moment.

    It yields text as soon as it may be shown, or ids. `state`, `ids` and `seed` are at every moment those of what was
    yielded, bit for bit as if no more had been asked for: after a `break`, an exception or Ctrl-C one goes on from
    there. With return_state the last thing yielded is the RWKVState. Nothing is computed before the first piece is
    wanted. ended: nothing more comes.
    """

    def __init__(self, writer, request, text, return_state=False):
        self._writer, self._request, self._text = writer, request, text
        self._return_state, self.ended = return_state, False
        self._begun = None

    def __iter__(self):
        return self

    def __next__(self):
        if self.ended:
            raise StopIteration
        self.ended = True  # whatever interrupts a step ends the stream, as it does a generator
        writing = self._writing
        while writing.live:
            piece = writing.step()[0]
            if len(piece):
                writing.handed_out()
                self.ended = False
                return piece if self._text is not None else piece[0]
        writing.finished()
        if self._return_state:
            return writing.state
        raise StopIteration

    def close(self):
        """Write nothing more."""
        self.ended = True

    @property
    def state(self):
        """The RWKVState that has consumed the prompt and what was yielded, but for the last token."""
        return self._writing.state

    @property
    def ids(self):
        """The ids of what was yielded, a list of int; the end token is among them once nothing more comes."""
        return self._writing.tokens[0]

    @property
    def seed(self):
        """(1, 2) int32: with it, `state` and the last id the draws go on as here."""
        return self._writing.seeds

    @property
    def drawn(self):
        """How many tokens were drawn, those included that wait to be shown."""
        return len(self._writing.drawn[0])

    @property
    def _writing(self):
        if self._begun is None:
            self._begun = Writing(self._writer, self._request, [self._text])
        return self._begun
