"""The tokenizer of models trained on the Pile: GPT-NeoX's byte-level BPE, a `20B_tokenizer.json` of Hugging Face."""

import json
import os
from itertools import chain

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.tokenizers.base import Tokenizer, utf8
from bert4keras_rwkv.untrusted import parse_json, printable, regular, shown

END = "<|endoftext|>"
JSON_NAME = "tokenizer.json"
LARGEST = 1 << 25  # bytes of a file; GPT-NeoX's has 2 million


class PileTokenizer(Tokenizer):
    """Text -> ids -> text with a byte-level BPE vocabulary in a JSON file of Hugging Face's `tokenizers`.

    As there, text is brought to the normal form the file asks for (NFC) and `<|endoftext|>` in a text becomes the end
    token. Ids are decoded byte for byte here, so that a stream of them may be cut anywhere.

    A cut vocabulary gives the ids that the whole one gives, under their new numbers, and spells a token that is gone
    with those it was merged from; texts of new ids are found first. Its file holds the whole vocabulary and, as
    `rows`, what each new id is: an old id, a text, or null. Other programs refuse it, for their ids would be wrong.

    Raises:
        ImportError: `tokenizers` is not installed.
        ValueError: the file is not such a vocabulary.
    """

    file_name = JSON_NAME

    def __init__(self, path):
        self._setup(_text_of(path), os.fspath(path))

    @classmethod
    def from_json(cls, text):
        """A tokenizer from the content of such a file."""
        tokenizer = cls.__new__(cls)
        tokenizer._setup(text, "the JSON text")
        return tokenizer

    def _setup(self, text, where):
        self._json, self._rows, self._spellings = _unwrapped(text, where)
        self._bpe = _loaded(self._json, where)
        tokens, end = _tokens_of(self._bpe, where)
        if self._rows is not None:
            _check_rows(self._rows, tokens, end, where)
            tokens, end = self._renumber(tokens, end)
        self.end_token = end
        self._hold(tokens)

    def _renumber(self, tokens, end):
        """The tokens of a cut vocabulary, and how its ids spell those of the whole one."""
        places = {old: new for new, old in enumerate(self._rows) if isinstance(old, int)}
        spell = _Spelling(self._bpe, json.loads(self._json)["model"], places, tokens)
        self._spellings = {old: spell(old) for old in tokens}
        kept = {new: tokens[old] for old, new in places.items() if old in tokens}
        for new, text in enumerate(self._rows):
            if isinstance(text, str):
                self._spellings[_matched_first(self._bpe, text)] = (new,)
                kept[new] = text.encode("utf-8")
        return kept, places[end]

    def __reduce__(self):
        return type(self).from_json, (self._saved(),)

    def _saved(self):
        """The content of the file."""
        if self._rows is None:
            return self._json
        return json.dumps({"rows": self._rows, "tokenizer": json.loads(self._json)}, ensure_ascii=False)

    def encode_text(self, text):
        """str -> list of int."""
        utf8(text)
        ids = self._bpe.encode(text, add_special_tokens=False).ids
        return ids if self._spellings is None else list(chain.from_iterable(map(self._spellings.__getitem__, ids)))

    def encode_bytes(self, data):
        """bytes -> list of int. They must be UTF-8, for this vocabulary has no tokens for other bytes."""
        try:
            return self.encode_text(bytes(data).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                "The Pile's vocabulary holds UTF-8 only. "
                f"Received: byte 0x{error.object[error.start]:02x} at position {error.start}, {error.reason}."
            ) from error

    def save(self, path):
        """Write the vocabulary to `path`: the file it was read from, or that of a cut one."""
        with atomic_file(path) as unfinished:
            unfinished.write_bytes(self._saved().encode("utf-8"))

    def _cut(self, places, added):
        rows = range(self.vocab_size) if self._rows is None else self._rows
        kept = [rows[old] if old in self._tokens else None for old in places]
        new = [added.get(new) for new in range(len(kept), max(added, default=0) + 1)]
        kept += [None if text is None else _as_text(text) for text in new]
        return type(self).from_json(json.dumps({"rows": kept, "tokenizer": json.loads(self._json)}))


class _Spelling:
    """Which new ids stand for an old one: its own, or those of the two tokens it was merged from, and so on."""

    def __init__(self, bpe, model, places, tokens):
        self._bpe, self._tokens = bpe, tokens
        self._known = {old: (new,) for old, new in places.items()}
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        ids = model["vocab"]
        self._parts = {ids[left + right]: (ids[left], ids[right]) for left, right in pairs}
        self._characters = {byte: character for character, byte in _alphabet().items()}

    def __call__(self, old):
        if old not in self._known:
            parts = self._parts.get(old) or self._pieces(old)
            self._known[old] = tuple(chain.from_iterable(map(self, parts)))
        return self._known[old]

    def _pieces(self, old):
        """What BPE makes of a token that it does not merge: a run of spaces, or the letters of a special one."""
        content = self._tokens[old] or self._bpe.id_to_token(old).encode()
        characters = [self._characters[byte] for byte in content]
        pieces = [piece.id for piece in self._bpe.model.tokenize("".join(characters))]
        return [self._bpe.token_to_id(one) for one in characters] if old in pieces else pieces


def _check_rows(rows, tokens, end, where):
    """A ValueError unless the rows of a cut vocabulary are what `save` writes."""
    usable = isinstance(rows, list) and all(
        row is None or isinstance(row, str) or (isinstance(row, int) and row in tokens) for row in rows
    )
    if not usable or not {end, *(token_id for token_id, token in tokens.items() if len(token) == 1)} <= set(rows):
        raise ValueError(f"The `rows` of {where} are ids of its tokenizer, the end and all bytes among them, or texts.")


def _as_text(token):
    """The str of a new token."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"The Pile's vocabulary holds UTF-8 only. Received a new token of {token!r}.") from error


def _matched_first(bpe, text):
    """Let `text` be found before anything else. Returns the id it has in `bpe`."""
    from tokenizers import AddedToken

    if bpe.token_to_id(text) is not None and not text.isascii():
        raise ValueError(f"No new token can have this text in a byte-level BPE: {text!r}.")
    bpe.add_tokens([AddedToken(text, normalized=False)])
    return bpe.token_to_id(text)


def _tokens_of(bpe, where):
    """{id: bytes} of a whole vocabulary, special tokens without any, and its end token."""
    added = bpe.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}
    ends = [token_id for token_id in special if added[token_id].content == END]
    if not ends:
        raise ValueError(f"A vocabulary of the Pile's models has a special token {END}. In {where} there is none.")
    alphabet = _alphabet()
    tokens = {token_id: token.content.encode() for token_id, token in added.items()} | dict.fromkeys(special, b"")
    for content, token_id in bpe.get_vocab().items():
        if token_id not in tokens:
            tokens[token_id] = _bytes_of(content, alphabet, where)
    return tokens, ends[0]


def _text_of(path):
    """The content of a file that begins like JSON."""
    with open(regular(path, "Vocabularies"), "rb") as file:
        start = file.read(1)
        if start != b"{":
            raise ValueError(f"'{path}' is no JSON file: it begins with {start!r}. Give a 20B_tokenizer.json.")
        data = start + file.read(LARGEST)
    if len(data) > LARGEST:
        raise ValueError(f"'{path}' is no vocabulary: it has more than {LARGEST} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8: {error}.") from error


def _unwrapped(text, where):
    """The JSON of the whole vocabulary, and the rows of a cut one or None."""
    whole = parse_json(text, where)
    if "rows" not in whole:
        return text, None, None
    if not isinstance(whole["rows"], list):
        raise ValueError(f"The `rows` of {where} are a list, one for each id. Received: {shown(whole['rows'])}.")
    return json.dumps(whole.get("tokenizer"), ensure_ascii=False), whole["rows"], {}


def _loaded(text, where):
    """The BPE of Hugging Face's library, without the padding and cutting that a file may ask for."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "A tokenizer.json is read by the package `tokenizers`, which is not installed. "
            "Run `pip install 'bert4keras_rwkv[pile]'`, or `pip install tokenizers`."
        ) from error
    try:
        bpe = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(printable(f"{where} is no vocabulary of Hugging Face's `tokenizers`: {error}.")) from error
    if not isinstance(bpe.model, tokenizers.models.BPE) or not isinstance(bpe.decoder, tokenizers.decoders.ByteLevel):
        raise ValueError(
            "A vocabulary of the Pile's models is a byte-level BPE, as in 20B_tokenizer.json. "
            f"In {where}: {type(bpe.model).__name__} with the decoder {type(bpe.decoder).__name__}."
        )
    bpe.no_padding()
    bpe.no_truncation()
    return bpe


def _alphabet():
    """{character: byte} of byte-level BPE: most bytes are spelt by themselves, the others by characters from 256 on."""
    from tokenizers.pre_tokenizers import ByteLevel

    characters = set(ByteLevel.alphabet())
    others = [byte for byte in range(256) if chr(byte) not in characters]
    themselves = {chr(byte): byte for byte in range(256) if chr(byte) in characters}
    return themselves | {chr(256 + index): byte for index, byte in enumerate(others)}


def _bytes_of(content, alphabet, where):
    try:
        return bytes(alphabet[character] for character in content)
    except KeyError as error:
        raise ValueError(
            f"{where} is no byte-level BPE: its token {shown(content)} has the character {error}."
        ) from error
