"""Texts as they come: JSON lines of texts and conversations, plain text, any iterable.

A source yields `Item`s, which `encoding.encoded` turns into documents, in other processes if need be.
"""

import json
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.templates import Part, conversation
from bert4keras_rwkv.untrusted import parse_json, shown

TURN_KEYS = ("messages", "conversations")


class Item(NamedTuple):
    """What a source gives for one document.

    content: a str, or a line of JSON as bytes. place: where it stands, for errors. size: bytes of the source it took.
    """

    content: str | bytes
    place: str
    size: int


def read_jsonl(path):
    """The lines of a JSONL file, not yet parsed; blank ones are passed over."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Item(line, f"'{path}', line {number}", len(line))


def read_text(path, separator=None):
    """The documents of a UTF-8 file. separator: a line that stands between two, None for one document a file."""
    with open(path, encoding="utf-8", newline="") as file:
        lines, first, number, size = [], 1, 0, 0
        try:
            for number, line in enumerate(file, 1):
                size += len(line.encode())
                if separator is not None and line.rstrip("\r\n") == separator:
                    yield Item("".join(_without_last_break(lines)), f"'{path}', lines from {first}", size)
                    lines, first, size = [], number + 1, 0
                else:
                    lines.append(line)
        except UnicodeDecodeError as error:
            raise ValueError(f"'{path}' is no UTF-8 text: {error}, after line {number}. Convert it first.") from error
        yield Item("".join(lines), f"'{path}', lines from {first}", size)


def from_iterable(values):
    """`Item`s of str, of parsed JSON such as {"text": ...}, or of a mixture, from any iterable."""
    for number, value in enumerate(values):
        content = value if isinstance(value, str) else json.dumps(value).encode()
        yield Item(content, f"Document {number}", len(content))


def parts_of(item):
    """The `Part`s of an `Item`.

    Raises:
        ValueError: JSON that is none, or says no document: where.
    """
    if isinstance(item.content, str):
        return [Part(item.content)]
    found = parse_json(item.content, item.place, once=False)
    if isinstance(found, dict):
        if isinstance(found.get("text"), str):
            return [Part(found["text"])]
        found = next((found[key] for key in TURN_KEYS if key in found), found)
    if isinstance(found, dict) and "text" in found:
        raise ValueError(f"{item.place}: the `text` of a document is a text. Received: {shown(found['text'])}.")
    if not isinstance(found, list):
        came = ", ".join(map(shown, islice(found, 8))) if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f'{item.place}: a line is {{"text": "..."}} or {{"messages": [{{"role": ..., "content": ...}}, ...]}}. '
            f"Received: {came or 'an empty object'}."
        )
    return conversation(found, item.place)


def write_jsonl(path, texts):
    """Write texts as lines {"text": ...}; the file appears when it is whole."""
    with atomic_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def write_text(path, texts, separator=None):
    """Write texts with the line `separator` between two; without one there may be a single text.

    Raises:
        ValueError: two texts and no separator, or a text that holds it as a line.
    """
    with atomic_file(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        for number, text in enumerate(texts):
            if number and separator is None:
                raise ValueError(
                    f"'{Path(path).name}' would hold several documents: say which line is to stand between them, "
                    "--separator TEXT, or write .jsonl."
                )
            if separator is not None and separator in re.split("\r?\n", text):
                raise ValueError(f"Document {number} holds the line {separator!r}. Choose another separator.")
            file.write(f"\n{separator}\n{text}" if number else text)


def _without_last_break(lines):
    """Lines before a separator: the break between belongs to neither."""
    return [*lines[:-1], lines[-1].removesuffix("\n").removesuffix("\r")] if lines else lines
