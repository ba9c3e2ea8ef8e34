"""What is written, handed out piece by piece."""

import dataclasses

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models.request import seeds
from bert4keras_rwkv.models.writer import Writing


class Stream:
    """The answer to one prompt, an iterator that may be left at any moment.

    It yields text as soon as it may be shown, or ids. `state`, `ids` and `seed` are at every moment those of what was
    yielded, bit for bit as if no more had been asked for: after a `break`, an exception or Ctrl-C one goes on from
    there. With return_state the last thing yielded is the RWKVState. Nothing is computed before the first piece is
    wanted. ended: nothing more comes.
    """

    def __init__(self, writer, request, as_text, return_state=False, read=None):
        self._writer, self._request = writer, request
        self._as_text, self._return_state, self.ended = as_text, return_state, False
        self._begun, self._read = None, read

    def __iter__(self):
        return self

    def __next__(self):
        if self.ended:
            raise StopIteration
        self.ended = True  # whatever interrupts a step ends the stream, as it does a generator
        piece = self._next_text() if self._as_text else self._next_id()
        if piece is None:
            if self._return_state:
                return self.state
            raise StopIteration
        self.ended = False
        return piece

    def _next_text(self):
        """A str that is not empty, None at the end."""
        writing = self._writing
        while writing.live:
            piece = writing.step()[0]
            if piece:
                writing.handed_out()
                return piece
        writing.finished()
        writing.handed_out()
        return None

    def _next_id(self):
        """An id, None at the end. Where stop texts are looked for, ids may wait as their text does."""
        writing, place = self._writing, len(self.ids)
        while writing.live and place == writing.shown[0]:
            writing.step()
        if not writing.live:
            writing.finished()
        if place == writing.shown[0]:
            return None
        writing.handed_out(place + 1)
        return writing.drawn[0][place]

    def close(self):
        """Write nothing more."""
        self.ended = True

    def again(self, seed=None):
        """Another answer to the same prompt, a `Stream` of its own: the one that `RWKV.stream` gives with this seed.

        The prompt is read once for all of them.
        """
        request = dataclasses.replace(self._request, seeds=seeds(seed, 1))
        if self._read is None:
            self._read = self._writer.begin(self._request)
        read = self._read._replace(seeds=ops.convert_to_tensor(request.seeds))
        return Stream(self._writer, request, self._as_text, self._return_state, read)

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
            self._begun = Writing(self._writer, self._request, self._read)
        return self._begun
