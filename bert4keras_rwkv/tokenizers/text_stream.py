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
