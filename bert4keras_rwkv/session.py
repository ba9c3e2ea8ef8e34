"""A text that is read and written in turns: what was read and written so far is remembered in the state."""

import threading
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.models.request import seeds, whole_number
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer, token_ids, unix_lines


class Place(NamedTuple):
    """Where a text stands.

    before: the RWKVState that has read all but `last`, the ids (1, n) int32 that are read next; both are None at the
    beginning, and `last` is None too where the state has read all.
    """

    before: RWKVState | None
    last: np.ndarray | None
    seed: np.ndarray  # (1, 2) int32, (seed, tokens written before)

    def then(self, ids):
        """The place after more ids, a list of int, which are read when something is written."""
        if not len(ids):
            return self
        ids = np.array([ids], "int32")
        return self._replace(last=ids if self.last is None else np.concatenate([self.last, ids], axis=1))


class Session:
    """Text in, text out, and the state between.

        session = Session(RWKV)
        session.read("Once upon a time")
        print(session.write(40))

    Reading a text in parts is reading it whole, and writing 40 tokens twice is writing 80 (when sampling
    too, for one seed). What is written may be left at any moment, by a break, an exception or Ctrl-C: the session has
    then read what was handed out and nothing else, as if that many tokens had been asked for.
    state: an RWKVState of one row to begin from. sampling, seed: as for `RWKV.generate`.
    A session belongs to one user at a time; a second one at the same moment is a RuntimeError.
    """

    def __init__(self, rwkv, state=None, sampling=None, seed=None):
        self.rwkv, self.sampling = rwkv, sampling
        self._lock, self._writing = threading.Lock(), None
        self._place = Place(None, None, seeds(seed, 1))
        self.state = state

    @property
    def state(self):
        """The RWKVState after everything read and handed out; None at the very beginning."""
        with self._alone():
            before, last, _ = self._here()
            return before if last is None else self.rwkv.prefill(last, before)[1]

    @state.setter
    def state(self, state):
        if state is not None:
            state = self.rwkv.state_for(state, 1)
        with self._alone():
            self._move(Place(state, None, self._here().seed))

    @property
    def place(self):
        """The `Place` after everything read and handed out. Set to an earlier one, or to one of a fork, the session
        goes on from there, bit for bit, with the same draws.
        """
        with self._alone():
            return self._here()

    @place.setter
    def place(self, place):
        with self._alone():
            self._move(place)

    def read(self, text):
        """Read a str, or ids. Returns self."""
        if isinstance(text, str):
            text = need_tokenizer(self.rwkv.tokenizer).encode(unix_lines(text))
        ids = token_ids(text, self.rwkv.config.vocab_size).reshape(1, -1)
        with self._alone():
            before, last, seed = self._here()
            if ids.shape[1]:
                if last is not None:
                    ids = np.concatenate([last, ids], axis=1)
                if ids.shape[1] > 1:
                    before = self.rwkv.prefill(ids[:, :-1], before)[1]
                last = ids[:, -1:]
            self._move(Place(before, last, seed))
        return self

    def write(self, max_new_tokens=256, stop_texts=(), *, max_length=None):
        """Write at most `max_new_tokens` tokens more, less if the text ends. Returns the new text.

        stop_texts: as for `RWKV.generate`; of a token in which one begins nothing is remembered. max_length: the same
        as max_new_tokens.
        """
        return "".join(self.stream(max_new_tokens, stop_texts, max_length=max_length))

    def stream(self, max_new_tokens=256, stop_texts=(), *, max_length=None):
        """`write`, piece by piece: an iterator. The session moves on as pieces are handed out.

        Reading, writing or setting `state` leaves the stream behind, and going on with it is a RuntimeError then. It
        goes on after `fork` and a look at `state`, which are where its last piece was handed out.
        """
        count = whole_number("max_new_tokens", max_new_tokens if max_length is None else max_length, 0)
        with self._alone():
            before, last, seed = place = self._here()
            if last is None:
                raise ValueError("There is no token to go on from: call read(text) first, with at least one token.")
            pieces = self.rwkv.stream(
                last[0],
                max_new_tokens=count,
                stop_texts=stop_texts,
                sampling=self.sampling,
                seed=seed,
                state=before,
                as_text=True,
            )
            self._move(place)
            self._writing = SessionStream(self, pieces)
            return self._writing

    def fork(self):
        """Another session that goes on from here; the two do not affect each other."""
        other = Session(self.rwkv, None, self.sampling)
        with self._alone():
            other._place = self._here()
        return other

    def _here(self):
        """The `Place` after all that was read and handed out."""
        if self._writing is None:
            return self._place
        pieces, place = self._writing.pieces, self._place
        if not pieces.ids:
            return place
        return Place(pieces.state, np.array([pieces.ids[-1:]], "int32"), pieces.seed)

    def _move(self, place):
        """Go on from `place`, and leave what was being written."""
        self._writing, self._place = None, place

    def _alone(self):
        return alone(self._lock, "session")


@contextmanager
def alone(lock, what):
    """A context for one thread at a time; a second one at the same moment is a RuntimeError. what: is in use."""
    if not lock.acquire(blocking=False):
        raise RuntimeError(f"Another thread uses this {what} at this moment. Give it one of its own: `fork()`.")
    try:
        yield
    finally:
        lock.release()


class SessionStream:
    """An iterator over what a session writes. It may be left at any moment; `close` does so by name."""

    def __init__(self, session, pieces):
        self._session, self.pieces = session, pieces

    def __iter__(self):
        return self

    def __next__(self):
        with self._session._alone():
            if self.pieces.ended:
                raise StopIteration
            if self._session._writing is not self:
                raise RuntimeError("The session was used since: it goes on after the pieces that this stream gave.")
            return next(self.pieces)

    def close(self):
        """Write nothing more."""
        self.pieces.close()
