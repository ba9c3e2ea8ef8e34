"""One answer that is being written: what it asks of the next step, and what becomes of the token that it gives."""

import numpy as np

from bert4keras_rwkv.generation.rows import WORD, Rows, words
from bert4keras_rwkv.server.asked import Done, Piece, Token
from bert4keras_rwkv.tokenizers.text_stream import TokenText


class Row:
    """One answer. read: a `models.rows.Batch` of one row, which has read all ids of the prompt but the last.

    cached: how many of those were not read. ends: ids that end a text.
    """

    def __init__(self, ticket, answer, read, cached, tokenizer, ends, vocab_size):
        asked = ticket.asked
        self.ticket, self.answer, self.cached, self._ends = ticket, answer, cached, ends
        self.read = read._replace(rows=Rows.one(vocab_size, asked.ids[-1], asked.bias))
        self.values = asked.sampling.values(1)
        self.begun = 0  # tokens whose steps have begun
        self.drawn = []
        self.text, self.ended = TokenText(tokenizer, asked.stops, asked.min_tokens), False
        self.raw = ""  # all text that was shown
        self._seeds, self._tokens, self._told = asked.seeds[answer], [], 0
        self._constraint = None if asked.constraint is None else asked.constraint()
        self._no_end = _without(ends, vocab_size) if asked.min_tokens else None
        self.last = self.read, 0, 0  # a batch, a row of it, and how many tokens it has, all of them shown

    @property
    def bound(self):
        """Whether what may come next depends on what came."""
        return self._constraint is not None

    @property
    def wants_step(self):
        """Whether one more token is to be drawn."""
        return not self.ended and self.begun < self.ticket.asked.limit

    def next_seeds(self):
        """The seeds of the next step, which begins: (2,) int32."""
        self.begun += 1
        return self._seeds + np.array([0, self.begun - 1], "int32")

    def allowed(self):
        """What may be drawn next, int32 (words,), None for everything. Raises ValueError of a constraint."""
        mask = None if self._constraint is None else self._constraint.mask()
        if self._no_end is None or self.begun >= self.ticket.asked.min_tokens:
            return mask
        longer = self._no_end if mask is None else mask & self._no_end
        return longer if longer.any() else mask

    def take(self, token, logits, batch, place):
        """A token was drawn. logits: (V,) NumPy, where they are wanted. batch, place: the row whose last token it is.

        Returns the events, of which a `Done` is the last. Raises ValueError of a constraint.
        """
        asked = self.ticket.asked
        self.drawn.append(token)
        if asked.logprobs is not None:
            self._tokens.append(_token(token, logits, asked.logprobs))
        end = token in self._ends
        if self._constraint is not None and not end:
            self._constraint.take(token)
        piece = "" if end else self.text.feed(token)
        complete = self._constraint is not None and self._constraint.ended
        stopped = end or self.text.stopped or complete
        self.ended = stopped or len(self.drawn) >= asked.limit
        if self.ended:
            piece += self.text.flush()
        if self.text.shown == len(self.drawn):
            self.last = batch, place, len(self.drawn)
        self.raw += piece
        told, self._told = self._told, self.text.shown + (self._tokens != [] and self._cut())
        tokens = tuple(self._tokens[told : self._told])
        events = [Piece(self.answer, piece, tokens)] if piece or tokens else []
        if self.ended:
            reason = "stop" if stopped else "length"
            events.append(Done(self.answer, reason, len(self.drawn), self.cached, self.raw, tuple(self.shown)))
        return events

    def _cut(self):
        """Whether only a part of the last token was shown, the one before a stop."""
        return self.text.stopped and len(self.raw) > len(self.text.tokenizer.decode(self.shown))

    @property
    def shown(self):
        """The ids of the tokens that were shown whole."""
        return self.drawn[: self.text.shown]


def _without(ids, vocab_size):
    """A bit for each id, set but for some."""
    bits = np.full(words(vocab_size), -1, "int32")
    for place in ids:
        bits[place // WORD] &= ~np.uint32(1 << place % WORD).astype("int32")
    return bits


def _token(token, logits, count):
    """A `Token` from the logits (V,)."""
    logits = logits - logits.max()
    logprobs = logits - np.log(np.exp(logits).sum(dtype="float64"))
    first = np.argpartition(-logprobs, range(count))[:count] if count else ()
    return Token(token, float(logprobs[token]), tuple((int(one), float(logprobs[one])) for one in first))
