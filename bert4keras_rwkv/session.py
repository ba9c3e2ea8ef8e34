"""A text that is read and written in turns: what was read and written so far is remembered in the state."""

import numpy as np

from bert4keras_rwkv.models.texts import need_tokenizer, token_ids


class Session:
    """Text in, text out, and the state between.

        session = Session(RWKV)
        session.read("Once upon a time")
        print(session.write(40))

    Reading a text in parts is reading it whole, and writing 40 tokens twice is writing 80 (when sampling
    too, for one seed).
    state: an RWKVState of one row to begin from. sampling, seed: as for `RWKV.generate`.
    """

    def __init__(self, rwkv, state=None, sampling=None, seed=None):
        self.rwkv, self.sampling = rwkv, sampling
        self._seed = np.array([[np.random.default_rng().integers(2**31) if seed is None else seed, 0]], "int64")
        self.state = state

    @property
    def state(self):
        """The RWKVState after everything read and written; None at the very beginning."""
        if self._last is None:
            return self._before
        return self.rwkv.prefill(self._last, self._before)[1]

    @state.setter
    def state(self, state):
        self._before, self._last = state, None

    def read(self, text):
        """Read a str, or ids. Returns self."""
        ids = need_tokenizer(self.rwkv.tokenizer).encode(text) if isinstance(text, str) else text
        ids = token_ids(ids, self.rwkv.config.vocab_size).reshape(1, -1)
        if ids.shape[1] == 0:
            return self
        if self._last is not None:
            ids = np.concatenate([self._last, ids], axis=1)
        if ids.shape[1] > 1:
            self._before = self.rwkv.prefill(ids[:, :-1], self._before)[1]
        self._last = ids[:, -1:]
        return self

    def write(self, max_length=256):
        """Write at most `max_length` tokens more, less if the text ends. Returns the new text."""
        return "".join(self.stream(max_length))

    def stream(self, max_length=256):
        """`write`, piece by piece."""
        if self._last is None:
            raise ValueError("There is no token to go on from: call read(text) first, with at least one token.")
        need_tokenizer(self.rwkv.tokenizer)
        text = self.rwkv.tokenizer.stream()
        ends = (self.rwkv.tokenizer.end_token,)
        seed = (self._seed & 0xFFFFFFFF).astype("uint32").view("int32")
        for piece in self.rwkv.stream(
            self._last[0], max_length + 1, ends, self.sampling, seed, self._before, return_state=True
        ):
            if not isinstance(piece, int):
                self._before = piece
            else:
                self._last = np.array([[piece]], "int32")
                self._seed[0, 1] += 1
                yield text.feed(piece)
        yield text.flush()

    def fork(self):
        """Another session that goes on from here; the two do not affect each other."""
        other = Session(self.rwkv, self._before, self.sampling)
        other._last, other._seed = self._last, self._seed.copy()
        return other
