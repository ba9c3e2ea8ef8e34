"""What every tokenizer has: ids to bytes and text, and the forms that text and ids come in."""

import operator

from bert4keras_rwkv.tokenizers.text_stream import TextStream


class Tokenizer:
    """Text -> ids -> text.

    A subclass says how text becomes ids (`encode_text`, `encode_bytes`), how its vocabulary is written (`save`) and
    cut (`_cut`). vocab_size: the largest id plus one; there may be gaps. end_token: the id that ends a document, which
    has no text. file_name: what the vocabulary is called in a preset folder, None if it cannot be written.
    """

    file_name = None
    end_token = 0

    def _hold(self, tokens):
        """Keep id -> bytes, the end token among them."""
        self._tokens = tokens
        self.vocab_size = max(tokens) + 1

    def __repr__(self):
        return f"<{type(self).__name__} vocab_size={self.vocab_size}>"

    def encode(self, text):
        """str -> list of int; a list of str -> a list of such lists."""
        if isinstance(text, str):
            return self.encode_text(text)
        if isinstance(text, (list, tuple)) and all(isinstance(one, str) for one in text):
            return [self.encode_text(one) for one in text]
        way_out = " Use `encode_bytes` for bytes." if isinstance(text, (bytes, bytearray)) else ""
        raise TypeError(f"`encode` takes a str or a list of str. Received: {_short(text)}.{way_out}")

    def decode(self, ids):
        """ids -> str, U+FFFD in place of broken bytes; a list of such sequences -> list of str.

        Sequences are lists, tuples, arrays or tensors of integers. The end of a document has no text.

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

    def __call__(self, text):
        """`encode`, as Keras Hub's tokenizers are called; arrays of strings, too."""
        return self.encode(text.tolist() if hasattr(text, "tolist") else text)

    def detokenize(self, ids):
        """`decode`, as Keras Hub calls it."""
        return self.decode(ids)

    def vocabulary_size(self):
        """`vocab_size`, as Keras Hub asks for it."""
        return self.vocab_size

    def token_to_id(self, token):
        """The id of one token, a str or its bytes. A ValueError if no id has just this text."""
        wanted = utf8(token) if isinstance(token, str) else bytes(token)
        for token_id, data in self._tokens.items():
            if data == wanted and (wanted or token_id == self.end_token):
                return token_id
        raise ValueError(f"No id of this vocabulary has the text {_short(token)}. `encode` cuts a text into tokens.")

    def id_to_token(self, token_id):
        """The text of one id, a str; bytes where they are no whole characters."""
        data = self.token_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data

    def decode_bytes(self, ids):
        """ids (one sequence, or a single id) -> bytes."""
        ids = _plain(ids)
        return self._join([ids] if isinstance(ids, int) else ids)

    def token_bytes(self, token_id):
        """The bytes of one id; b'' for the end token."""
        return self._join([token_id])

    def same_as(self, other):
        """Whether every id has the same text in both."""
        return self._tokens == other._tokens and self.end_token == other.end_token

    def stream(self):
        """A decoder for ids that come one by one: `TextStream`."""
        return TextStream(self)

    def without_text(self, size):
        """The ids below `size`, the rows of a model, that cannot be decoded."""
        gaps = () if len(self._tokens) == self.vocab_size else range(min(self.vocab_size, size))
        return *(gap for gap in gaps if gap not in self._tokens), *range(self.vocab_size, size)

    def parts_of(self, text):
        """The ids whose text is a part of `text`, the end token and others without characters included, in order."""
        data = utf8(text)
        return tuple(token_id for token_id, token in sorted(self._tokens.items()) if token in data)

    def remapped(self, keep, texts=()):
        """The tokenizer of a model whose vocabulary was cut: its id i is the old id `keep[i]`.

        texts: str, bytes or None (no text), for the ids behind these. Without the end token, or a byte that text may
        need, no text can be written: then every text method of what is returned raises a ValueError that says so.

        Raises:
            ValueError: an id twice, or a text that another id has.
        """
        places = places_of(keep)
        single = (token_id for token_id, token in self._tokens.items() if len(token) == 1)
        missing = [token_id for token_id in (self.end_token, *single) if token_id not in places]
        if missing:
            return Textless(missing, len(places) + len(texts), places.get(self.end_token))
        kept = {self._tokens[old] for old in places if old in self._tokens}
        return self._cut(places, _new_tokens(texts, len(places), kept))

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


class Textless(Tokenizer):
    """Stands where a cut vocabulary allows no tokenizer: every text method says why.

    missing: the ids that were not kept. end_token: None if it is one of them.
    """

    def __init__(self, missing, vocab_size, end_token=None):
        self.vocab_size, self.end_token = vocab_size, end_token
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        self._why = (
            f"Text needs the end token and every single byte. `keep_tokens` left out {len(missing)} of them: {shown}. "
            "Keep them too, or use ids."
        )

    def _refuse(self, *_, **__):
        raise ValueError(self._why)

    encode = encode_text = encode_bytes = decode = decode_bytes = token_bytes = parts_of = stream = remapped = save = (
        _refuse
    )

    def without_text(self, size):
        return tuple(range(size))


def places_of(keep):
    """{old id: new id} for the old ids in their new order. An id twice is a ValueError."""
    places = {}
    for new, old in enumerate(keep):
        old = operator.index(old)
        if places.setdefault(old, new) != new:
            raise ValueError(f"Each id is kept once. Received: id {old} at {places[old]} and at {new}.")
    return places


def _new_tokens(texts, start, kept):
    """{id: bytes} of the texts given for ids from `start` on."""
    tokens, taken = {}, set(kept)
    for token_id, text in enumerate(texts, start):
        if text is None:
            continue
        token = utf8(text) if isinstance(text, str) else bytes(text)
        if not token or token in taken:
            raise ValueError(f"A new token has a text that no other has. Received: {token!r} for id {token_id}.")
        tokens[token_id] = token
        taken.add(token)
    return tokens


def utf8(text):
    """The bytes of a str. Half of a surrogate pair, which has none, is a ValueError."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Text must have a UTF-8 form. Received: {text[error.start]!r} at position {error.start}, half of "
            "a surrogate pair. Pass the original bytes to `encode_bytes`, or drop it with "
            "text.encode('utf-8', 'ignore').decode()."
        ) from error


def _plain(ids):
    """Arrays and tensors as nested lists of int; anything else as it came."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    return ids.numpy().tolist() if hasattr(ids, "numpy") else ids


def _short(value):
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"
