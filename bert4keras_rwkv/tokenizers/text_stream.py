"""Text from a stream of ids: characters appear as soon as their bytes are complete."""

import codecs


class TextStream:
    """Decodes ids or bytes as they come.

    A token may hold half of a character: its bytes wait here until the rest comes. What `feed` gave, joined, and
    `flush` at the end are the decoding of the whole, however it was cut.

        stream = tokenizer.stream()
        for token_id in generated:
            print(stream.feed(token_id), end="", flush=True)
        print(stream.flush())
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self):
        """The bytes of a character that is not complete yet."""
        return self._decoder.getstate()[0]

    def feed(self, ids):
        """The text that `ids` (an id or a sequence of ids) complete; U+FFFD for bytes that cannot become text."""
        return self.feed_bytes(self._tokenizer.decode_bytes(ids))

    def feed_bytes(self, data):
        """The same for bytes."""
        return self._decoder.decode(data)

    def flush(self):
        """What is left: U+FFFD for a character that was never completed, else nothing. A new text may follow."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class TokenText:
    """From tokens that are written one by one to the text that may be shown: whole tokens, and nothing of a stop text.

    A token waits while a character of it is not complete, and while the text may still become one of `stops`. So what
    was given out is at every moment the text of `shown` tokens, and whoever stops reading knows what was read. Only the
    text before a stop may end inside a token, which does not count as shown then.

    after: in how many tokens no stop is looked for.
    fed, shown: tokens taken, and wholly given out. stopped: whether a stop was found; there is no more text then.
    """

    def __init__(self, tokenizer, stops=(), after=0):
        self.tokenizer, self._all_stops, self._after = tokenizer, stops, after
        self._stream = TextStream(tokenizer)
        self._waiting, self._ends = "", []  # text, and (place, tokens) where a token ends between two characters
        self.fed, self.shown, self.stopped = 0, 0, False

    def feed(self, token):
        """The text that can be shown now that `token`, an id, has come."""
        data = self.tokenizer.decode_bytes(token)
        if self._stream.pending:
            first, data = self._stream.feed_bytes(data[:1]), data[1:]
            if len(first) + len(self._stream.pending) == 2:  # no rest of the character: the token before ends in U+FFFD
                self._ends.append((len(self._waiting) + 1, self.fed))
            self._waiting += first
        self._waiting += self._stream.feed_bytes(data)
        self.fed += 1
        if not self._stream.pending:
            self._ends.append((len(self._waiting), self.fed))
        elif len(self._stream.pending) == len(data):
            self._ends.append((len(self._waiting), self.fed - 1))
        return self._given(self._begun())

    def flush(self):
        """The rest, when no token comes any more."""
        self._waiting += self._stream.flush()
        self._ends.append((len(self._waiting), self.fed))
        return self._given(0)

    @property
    def _stops(self):
        """The stop texts that are looked for now."""
        return self._all_stops if self.fed > self._after else ()

    def _begun(self):
        """How many of the last characters may be the beginning of a stop."""
        text = self._waiting
        return max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)

    def _given(self, kept):
        """What comes before a stop, else the whole tokens before the last `kept` characters."""
        if self.stopped:
            return ""
        text = self._waiting
        places = [place for place in map(text.find, self._stops) if place >= 0]
        if places:
            self.stopped, end = True, min(places)
        else:
            end = max((place for place, _ in self._ends if place <= len(text) - kept), default=0)
        self.shown = max((count for place, count in self._ends if place <= end), default=self.shown)
        self._waiting = text[end:]
        self._ends = [(place - end, count) for place, count in self._ends if place > end]
        return text[:end]
