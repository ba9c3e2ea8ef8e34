"""The World tokenizer: greedy longest match on the bytes of a text."""

import re
from itertools import chain

from bert4keras_rwkv.tokenizers.base import Tokenizer, utf8
from bert4keras_rwkv.tokenizers.vocabulary import (
    VOCABULARY_NAME,
    check_entries,
    read_vocabulary,
    world_path,
    write_vocabulary,
)

# Before these bytes a text may be cut where no token crosses the cut; what lies between is encoded once and remembered.
CUTS = b" \n"
REMEMBERED_PIECES = 1 << 16
LONGEST_REMEMBERED = 32
BLOCK = 1 << 20


class RWKV_TOKENIZER(Tokenizer):
    """Text -> ids -> text with a World vocabulary.

    At each position the longest vocabulary entry is taken. Every byte string can be encoded; decoding
    gives it back.

    Args:
        path: a vocabulary file in World format, or the `vocab.txt` of a Hugging Face folder. None: the World
            vocabulary of the installed `rwkv` package.

    Raises:
        FileNotFoundError: no path and no `rwkv` package, or no such file.
        ValueError: the file is not a vocabulary (with the line).
    """

    file_name = VOCABULARY_NAME

    def __init__(self, path=None):
        self._setup(read_vocabulary(world_path() if path is None else path))

    @classmethod
    def from_entries(cls, entries, end_token=0):
        """A tokenizer from a mapping id -> bytes, as other containers of a vocabulary give it."""
        tokens = dict(entries)
        check_entries(tokens, end_token)
        tokenizer = cls.__new__(cls)
        tokenizer._setup(tokens, end_token)
        return tokenizer

    def _setup(self, tokens, end_token=0):
        self._ids = ids = {token: token_id for token_id, token in tokens.items()}
        self._bytes = [ids[bytes([byte])] for byte in range(256)]
        self._triples = _triples(ids)
        self._cuts = _cut_pattern(ids)
        self._pieces = _Pieces(self._longest_match)
        self.end_token = end_token
        self._hold({**tokens, end_token: b""})

    def __reduce__(self):
        return type(self).from_entries, (self._entries(), self.end_token)

    def _entries(self):
        return {token_id: token for token_id, token in self._tokens.items() if token_id != self.end_token}

    def _cut(self, places, added):
        kept = {places[old]: token for old, token in self._entries().items() if old in places}
        return type(self).from_entries(kept | added, places[self.end_token])

    def encode_text(self, text):
        """str -> list of int."""
        return self.encode_bytes(utf8(text))

    def encode_bytes(self, data):
        """bytes -> list of int. Any bytes, valid UTF-8 or not."""
        data, ids, start, block = bytes(data), [], 0, BLOCK
        while start < len(data):
            stop = start + block
            pieces = self._cuts.findall(data, start, stop)
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

    def save(self, path):
        """Write the vocabulary to `path`, in World format, in which id 0 ends a document."""
        if self.end_token != 0:
            raise ValueError(
                "In a vocabulary file id 0 ends a document. "
                f"Received: a tokenizer whose end token is id {self.end_token}. Put id 0 first in `keep_tokens`."
            )
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
