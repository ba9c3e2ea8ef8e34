"""A text apart from a conversation: written on from where a prompt ends, gone on with, or written again."""

from bert4keras_rwkv.commands.events import Begun, Ended, Piece
from bert4keras_rwkv.models.request import seeds
from bert4keras_rwkv.session import Session

TOKENS = 256  # that are written before it ends softly, as in ChatRWKV, unless another number was said
TO_THE_NEXT_CHARACTER = 100  # tokens more at most, until a character is whole


class FreeText:
    """What `+gen`, `+i`, `+qq` and `+qa` write. It remembers where it began, and where it ended.

    ids: what is read first, a list of int, in pieces of chunk_len tokens, with progress(done, total) called after each.
    new_seed: gives an int for each way of writing it. stops: texts that end it. state: the RWKVState to read it in,
    which has read `before` tokens; None for an empty context. tokens: after how many a text ends, when a character is
    whole; None for `TOKENS`. context: tokens that were read and written so far.
    """

    def __init__(self, rwkv, ids, new_seed, chunk_len, progress, stops=(), state=None, before=0, tokens=None):
        self.tokens = tokens
        self._session, self._stops, self._new_seed = Session(rwkv, state, seed=new_seed()), stops, new_seed
        read(self._session, ids, chunk_len, progress)
        # Of the last text: the `Place` where it began, and the tokens before it.
        self._began, self._before = self._session.place, before + len(ids)
        self.context = self._before

    def first(self, sampling, stop):
        """Write a text. Gives events, as all of these do. stop: asked between two of them."""
        yield from self._text(sampling, stop)

    def more(self, sampling, stop):
        """Go on, whatever ended it."""
        self._began, self._before, self._stops = self._session.place, self.context, ()
        yield from self._text(sampling, stop)

    def again(self, sampling, stop):
        """Another text from where the last one began."""
        self._session.place = self._began._replace(seed=seeds(self._new_seed(), 1))
        yield from self._text(sampling, stop)

    def _text(self, sampling, stop):
        self._session.sampling = sampling
        tokens = self.tokens or TOKENS
        stream = self._session.stream(tokens + TO_THE_NEXT_CHARACTER, self._stops)
        stopped = False
        yield Begun("")
        try:
            for piece in stream:
                yield Piece(piece, stream.pieces.drawn)
                stopped = stop()
                if stopped or stream.pieces.drawn >= tokens:
                    break
        finally:
            self.context = self._before + len(stream.pieces.ids)
        yield Ended(stream.pieces.drawn, self.context, stopped)


def read(session, ids, chunk_len, progress):
    """Let a session read `ids`, a list of int; what is longer than `chunk_len` piece by piece.

    The last tokens are read when something is written, by the program that writes, so that a short text needs no other.
    """
    at = 0
    while len(ids) - at > chunk_len:
        session.read(ids[at : at + chunk_len])
        at += chunk_len
        progress(at, len(ids))
    session.place = session.place.then(ids[at:])
