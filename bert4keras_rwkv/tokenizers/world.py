"""The World tokenizer: greedy longest match on the bytes of a text."""

import operator
import re
from itertools import chain

from bert4keras_rwkv.tokenizers.text_stream import TextStream
from bert4keras_rwkv.tokenizers.vocabulary import check_entries, read_vocabulary, world_path, write_vocabulary

# Before these bytes a text may be cut where no token crosses the cut; what lies between is encoded once and remembered.
CUTS = b" \n"
REMEMBERED_PIECES = 1 << 16
LONGEST_REMEMBERED = 32
BLOCK = 1 << 20


class RWKV_TOKENIZER:
    """Text -> ids -> text with a World vocabulary.

    At each position the longest vocabulary entry is taken. Every byte string can be encoded; decoding
    gives it back.

    Args:
        path: a vocabulary file in World format. None: the World vocabulary of the installed `rwkv` package.

    Raises:
        FileNotFoundError: no path and no `rwkv` package, or no such file.
        ValueError: the file is not a vocabulary (with the line).
    """

    end_token = 0

    def __init__(self, path=None):
        self._setup(read_vocabulary(world_path() if path is None else path))

    @classmethod
    def from_entries(cls, entries):
        """A tokenizer from a mapping id -> bytes, as other containers of a vocabulary give it."""
        tokens = dict(entries)
        check_entries(tokens)
        tokenizer = cls.__new__(cls)
        tokenizer._setup(tokens)
        return tokenizer

    def _setup(self, tokens):
        self._tokens = tokens
        self._ids = ids = {token: token_id for token_id, token in tokens.items()}
        self._bytes = [ids[bytes([byte])] for byte in range(256)]
        self._triples = _triples(ids)
        self._cut = _cut_pattern(ids)
        self._pieces = _Pieces(self._longest_match)
        self.vocab_size = max(tokens) + 1
        tokens[self.end_token] = b""

    def __repr__(self):
        return f"<{type(self).__name__} vocab_size={self.vocab_size}>"

    def __reduce__(self):
        return type(self).from_entries, (self._entries(),)

    def _entries(self):
        return {token_id: token for token_id, token in self._tokens.items() if token_id != self.end_token}

    def encode(self, text):
        """str -> list of int; a list of str -> a list of such lists."""
        if isinstance(text, str):
            try:
                return self.encode_bytes(text.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"Text must have a UTF-8 form. Received: {text[error.start]!r} at position {error.start}, half of "
                    "a surrogate pair. Pass the original bytes to `encode_bytes`, or drop it with "
                    "text.encode('utf-8', 'ignore').decode()."
                ) from error
        if isinstance(text, (list, tuple)) and all(isinstance(one, str) for one in text):
            return [self.encode(one) for one in text]
        way_out = " Use `encode_bytes` for bytes." if isinstance(text, (bytes, bytearray)) else ""
        raise TypeError(f"`encode` takes a str or a list of str. Received: {_short(text)}.{way_out}")

    def encode_bytes(self, data):
        """bytes -> list of int. Any bytes, valid UTF-8 or not."""
        data, ids, start, block = bytes(data), [], 0, BLOCK
        while start < len(data):
            stop = start + block
            pieces = self._cut.findall(data, start, stop)
            if stop < len(data):
                # The end of the block may lie inside the last piece: leave that to the next block.
                stop -= len(pieces.pop())
            ids.extend(chain.from_iterable(map(self._pieces.__getitem__, pieces)))
            block = block if pieces else 2 * block
            start = stop
        return ids

    def _longest_match(self, data):
        """bytes -> list of int by greedy longest match: the definition, with no cuts."""
        found, position, end = [], 0, len(data)
        append, ids, triples, single = found.append, self._ids.get, self._triples.get, self._bytes
        while position < end:
            entry = triples(data[position : position + 3])
            if entry is None:
                token_id = ids(data[position : position + 2])
                if token_id is None:
                    append(single[data[position]])
                    position += 1
                else:
                    append(token_id)
                    position += 2
                continue
            lengths, length, fallback = entry
            for candidate in lengths:
                # A slice that the end cuts short is the whole rest: a match is then the longest there can be.
                token_id = ids(data[position : position + candidate])
                if token_id is not None:
                    append(token_id)
                    position += candidate
                    break
            else:
                append(fallback)
                position += length
        return found

    def decode(self, ids):
        """ids -> str, U+FFFD in place of broken bytes; a list of such sequences -> list of str.

        Sequences are lists, tuples, arrays or tensors of integers. Id 0, the end of a document, has no text.

        Raises:
            ValueError: an id that the vocabulary does not have, with its position.
        """
        ids = _plain(ids)
        if isinstance(ids, (list, tuple)) and any(
            isinstance(row, (list, tuple)) or getattr(row, "ndim", 0) for row in ids
        ):
            rows = [self._join(_plain(row), f"row {number}, ") for number, row in enumerate(ids)]
            return [row.decode("utf-8", "replace") for row in rows]
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        """ids (one sequence, or a single id) -> bytes."""
        ids = _plain(ids)
        return self._join([ids] if isinstance(ids, int) else ids)

    def _join(self, ids, where=""):
        try:
            return b"".join(map(self._tokens.__getitem__, map(operator.index, ids)))
        except (KeyError, TypeError):
            raise self._bad_ids(ids, where) from None

    def _bad_ids(self, ids, where):
        """The error for ids of which at least one cannot be decoded."""
        if isinstance(ids, (list, tuple)):
            for position, number in enumerate(ids):
                if not hasattr(number, "__index__"):
                    return TypeError(f"Ids are integers. Received: {_short(number)} at {where}position {position}.")
                if operator.index(number) not in self._tokens:
                    gaps = "" if len(self._tokens) == self.vocab_size else ", with gaps"
                    return ValueError(
                        f"Ids of this vocabulary lie in 0 .. {self.vocab_size - 1}{gaps}. "
                        f"Received: id {operator.index(number)} at {where}position {position}."
                    )
        return TypeError(f"Ids come as a sequence of integers, or a list of such. Received: {where}{_short(ids)}.")

    def token_bytes(self, token_id):
        """The bytes of one id; b'' for the end token."""
        return self._join([token_id])

    def stream(self):
        """A decoder for ids that come one by one: `TextStream`."""
        return TextStream(self)

    def save(self, path):
        """Write the vocabulary to `path`, in World format."""
        write_vocabulary(path, self._entries())


class _Pieces(dict):
    """piece -> ids, computed when first asked for. Bounded: it starts again when full."""

    def __init__(self, encode):
        super().__init__()
        self._encode = encode

    def __missing__(self, piece):
        ids = self._encode(piece)
        if len(piece) <= LONGEST_REMEMBERED:
            if len(self) >= REMEMBERED_PIECES:
                self.clear()
            self[piece] = tuple(ids)
        return ids


def _triples(ids):
    """{the first three bytes of a token: (lengths > 3 of tokens that start so, longest first; length and id of the
    longest token within these three bytes)}."""
    lengths = {}
    for token in ids:
        if len(token) > 2:
            lengths.setdefault(token[:3], set()).add(len(token))
    shared, table = {}, {}
    for start, found in lengths.items():
        longer = tuple(sorted(found - {3}, reverse=True))
        length = next(length for length in (3, 2, 1) if start[:length] in ids)
        table[start] = shared.setdefault(longer, longer), length, ids[start[:length]]
    return table


def _cut_pattern(ids):
    """A pattern whose matches are the pieces of a text that no token crosses.

    A piece ends before one of `CUTS`, unless the byte in front of it is one that stands before a cut byte inside some
    token. So encoding piece by piece is encoding the whole.
    """
    crossed = set()
    for token in ids:
        for cut in CUTS:
            position = token.find(cut, 1)
            while position > 0:
                crossed.add(token[position - 1])
                position = token.find(cut, position + 1)
    cuts, crossed = re.escape(CUTS), b"".join(re.escape(bytes([byte])) for byte in sorted(crossed))
    joined = rb"(?:(?<=[%b])[%b][^%b]*)*" % (crossed, cuts, cuts) if crossed else b""
    return re.compile(rb".[^%b]*%b" % (cuts, joined), re.DOTALL)


def _plain(ids):
    """Arrays and tensors as nested lists of int; anything else as it came."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    return ids.numpy().tolist() if hasattr(ids, "numpy") else ids


def _short(value):
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"
