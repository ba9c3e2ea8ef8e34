"""Vocabulary files in World format: lines `id literal length`, the literal a Python str or bytes.

    98 'a' 1
    10464 '你' 3
    129 b'\x80' 1

The length counts bytes. Ids start at 1: id 0 is the end of a document and has no text. Lines end in LF or CRLF.

Older Hugging Face folders of World models have a `vocab.txt` of bare literals instead: the first is b'<s>' for id 0,
and each line's number is its id.
"""

import ast
import importlib.util
import os
import re
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.untrusted import printable, regular, shown

WORLD_NAME = "rwkv_vocab_v20230424.txt"
VOCABULARY_NAME = "vocab.txt"  # what a preset folder calls its vocabulary
NUMBERED = "`id literal length`, such as `98 'a' 1`"
LISTED = "one Python literal each behind the first, b'<s>'"
LARGEST_ID = (1 << 24) - 1  # hundreds of times the largest there is: a row for each id is made in several places
LONGEST_LITERAL = 1 << 16
LONGEST_NUMBER = 20  # digits
ESCAPES = rb"""\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|[0-3]?[0-7]{1,2}|%s)"""
TEXT = rb"""(?:'(?:[^'\\]|%s)*'|"(?:[^"\\]|%s)*")"""
UNICODE = ESCAPES % rb"u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}"
LITERAL = re.compile(TEXT % (UNICODE, UNICODE) + b"|b" + TEXT % ((ESCAPES % b"0",) * 2))


def world_path():
    """The World vocabulary that the `rwkv` package ships, found without importing that package.

    Raises:
        FileNotFoundError: no `rwkv` package is installed, or it carries no vocabulary.
    """
    spec = importlib.util.find_spec("rwkv")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / WORLD_NAME
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The World vocabulary `{WORLD_NAME}` comes with the `rwkv` package, which was not found. "
        "Run `pip install rwkv`, or give the path of a vocabulary file: RWKV_TOKENIZER(path)."
    )


def is_numbered(path):
    """Whether a file begins with a line `id literal length`. Other projects' `vocab.txt` have other lines."""
    words = _first_line(path).split()
    return len(words) >= 3 and words[0].isdigit() and words[-1].isdigit()


def is_listed(path):
    """Whether a file begins like a list of bare literals."""
    return _first_line(path).strip() in (b"b'<s>'", b"'<s>'")


def _first_line(path):
    """The first line of a file, 1000 bytes at most; of what is no file, nothing."""
    if not Path(path).is_file():
        return b""
    with open(path, "rb") as file:
        return file.readline(1000)


def read_vocabulary(path):
    """Read a vocabulary file: {id: bytes}, in the order of the file.

    Raises:
        ValueError: with the number of the first line that is not of its form, whose length is wrong, or that repeats
            an id or a token; or naming the single bytes that have no token.
    """
    tokens, first_lines, listed = {}, {}, is_listed(path)
    with open(regular(path, "Vocabularies"), "rb") as file:
        if listed:
            file.readline()
        for number, line in enumerate(file, 1 + listed):
            content = line.rstrip(b"\r\n")
            try:
                token_id, token = (number - 1, _token(content)) if listed else _parse(content)
                if token_id in tokens:
                    raise ValueError(f"id {token_id} was given before, to {shown(tokens[token_id])}")
                if token in first_lines:
                    raise ValueError(f"the token {shown(token)} was given before, on line {first_lines[token]}")
            except ValueError as error:
                said = f"A vocabulary has lines {LISTED if listed else NUMBERED}. In {os.fspath(path)}, line {number}: "
                raise ValueError(printable(f"{said}{error}. Received: {_clip(line)}.")) from error
            tokens[token_id] = token
            first_lines[token] = number
    try:
        check_entries(tokens)
    except ValueError as error:
        raise ValueError(f"In {os.fspath(path)}: {error}") from error
    return tokens


def _parse(line):
    """One line -> (id, bytes). ValueError says what is wrong with it."""
    id_text, _, rest = line.partition(b" ")
    literal, _, length = rest.rpartition(b" ")
    if not (id_text.isdigit() and length.isdigit() and literal and max(len(id_text), len(length)) <= LONGEST_NUMBER):
        raise ValueError("not of this form")
    token = _token(literal)
    if len(token) != int(length):
        raise ValueError(f"the length says {int(length)} bytes, the token has {len(token)}")
    if not 0 < (token_id := int(id_text)) <= LARGEST_ID:
        raise ValueError(f"an id lies in 1 .. {LARGEST_ID} (0 is the end of a document)")
    return token_id, token


def _token(literal):
    """The bytes that a literal says."""
    # Most literals are plain text between quotes, their bytes the token itself; ast takes 30 times as long.
    quote, token = literal[:1], literal[1:-1]
    if quote not in (b"'", b'"') or literal[-1:] != quote or quote in token or b"\\" in token:
        token = _evaluate(literal)
    elif not token.isascii():
        _utf8(token)
    if not token:
        raise ValueError("the token is empty")
    return token


def _evaluate(literal):
    """The bytes of a literal with escapes. Only one text between quotes comes to Python's parser, nothing nested."""
    if len(literal) > LONGEST_LITERAL or not LITERAL.fullmatch(literal):
        raise ValueError("the literal is not Python's of one str or bytes")
    try:
        value = ast.literal_eval(_utf8(literal))
    except (SyntaxError, ValueError) as error:
        raise ValueError("the literal is not Python's of one str or bytes") from error
    return _encoded(value) if isinstance(value, str) else value


def _utf8(literal):
    try:
        return literal.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("the line is not UTF-8") from error


def _encoded(text):
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair has no bytes") from error


def _clip(line):
    line = line.rstrip(b"\r\n")
    return repr(line[:60]) + (f" and {len(line) - 60} more bytes" if len(line) > 60 else "")


def check_entries(tokens, end_token=0):
    """Raise ValueError unless {id: bytes} is a vocabulary: ids but the end token's, no token twice, every single byte
    a token.
    """
    for token_id, token in tokens.items():
        usable = isinstance(token_id, int) and token_id >= 0 and token_id != end_token
        if not usable or not isinstance(token, bytes) or not token:
            ids = "from 1" if end_token == 0 else f"from 0, without {end_token}"
            raise ValueError(
                f"A vocabulary maps ids (int, {ids}) to tokens (bytes, not empty). "
                f"Received: {shown(token_id)} for {shown(token)}."
            )
    ids = set(tokens.values())
    if len(ids) < len(tokens):
        seen = set()
        twice = next(token for token in tokens.values() if token in seen or seen.add(token))
        raise ValueError(f"A vocabulary has every token once. Received: {shown(twice)} with several ids.")
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        first = ", ".join(f"0x{byte:02x}" for byte in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise ValueError(
            f"A vocabulary needs a token for every single byte, so that every text can be encoded. "
            f"Missing: {first} ({len(missing)} in all)."
        )


def write_vocabulary(path, tokens):
    """Write {id: bytes} in World format, sorted by id. The file appears whole or not at all."""
    lines = []
    for token_id, token in sorted(tokens.items()):
        try:
            literal = repr(token.decode("utf-8"))
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{token_id} {literal} {len(token)}\n")
    with atomic_file(path) as unfinished:
        unfinished.write_bytes("".join(lines).encode("utf-8"))
