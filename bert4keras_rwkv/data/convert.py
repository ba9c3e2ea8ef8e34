"""Data sets from one form into another: JSONL, plain text, TFRecord, binidx."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bert4keras_rwkv.data.binidx import Binidx, binidx_paths, write_binidx
from bert4keras_rwkv.data.documents import Joined, checked, place_of
from bert4keras_rwkv.data.encoding import encoded
from bert4keras_rwkv.data.records import RecordFile, write_records
from bert4keras_rwkv.data.sources import parts_of, read_jsonl, read_text, write_jsonl, write_text

SUFFIXES = {
    "jsonl": (".jsonl",),
    "text": (".txt",),
    "tfrecord": (".tfrecord", ".tfrecords"),
    "binidx": (".bin", ".idx"),
}
TEXTS = ("jsonl", "text")
UINT16_IDS = 1 << 16


@dataclass
class Conversion:
    """What became of a data set. empty: documents without text, left out. unmarked: conversations of which DST cannot
    say what is the answer. replaced: documents whose ids were no valid UTF-8, with U+FFFD in them.
    """

    documents: int = 0
    tokens: int = 0
    empty: int = 0
    unmarked: int = 0
    replaced: int = 0


def kind_of(path, kind=None):
    """The form of a data set: `kind` if it is a known one, else by the suffix of `path` or of the files in it."""
    if kind is not None:
        if kind not in SUFFIXES:
            raise ValueError(f"A data set is one of {', '.join(SUFFIXES)}. Received: '{kind}'.")
        return kind
    path = Path(path)
    suffixes = {file.suffix for file in path.iterdir()} if path.is_dir() else {path.suffix}
    kinds = [known for known, theirs in SUFFIXES.items() if suffixes & set(theirs)]
    if len(kinds) != 1:
        every = ", ".join(suffix for theirs in SUFFIXES.values() for suffix in theirs)
        held = f"holds data of {len(kinds)} forms" if path.is_dir() else "has another"
        raise ValueError(f"The suffix of a data set is one of {every}; '{path}' {held}. Say its form.")
    return kinds[0]


def files_of(path, kind):
    """The files of a data set: `path` itself, or those in the folder in the order of their names; of binidx the .bin.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    suffixes = SUFFIXES[kind][:1] if kind == "binidx" else SUFFIXES[kind]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    else:
        found = [binidx_paths(path)[0] if kind == "binidx" else path]
    missing = [file for file in found if not file.is_file()]
    if missing or not found:
        raise FileNotFoundError(f"There is no {kind} data set '{missing[0] if missing else path}'.")
    return found


def convert(source, target, tokenizer=None, to=None, format=None, separator=None, workers=1, progress=None):
    """Read the data set `source` and write `target`, which appears when it is whole. Returns a `Conversion`.

    source: a file, or a folder with files of one form. tokenizer: between texts and ids; between ids and ids it says
    which there are. to, format: the forms of target and source, None for what their suffixes say. separator: the line
    between documents of plain text. workers: processes that encode. progress: called with (done, total), in bytes of
    text or in documents of ids.

    Raises:
        ValueError: damaged data, or an id that the tokenizer does not have: which file, which line or record.
    """
    kind, wanted = kind_of(source, format), kind_of(target, to)
    if tokenizer is None and (kind in TEXTS) != (wanted in TEXTS):
        raise ValueError(f"From {kind} to {wanted} needs a tokenizer: --tokenizer FILE, or `world` for World models.")
    report = Conversion()
    if kind in TEXTS and wanted in TEXTS:
        texts = _texts(_items(source, kind, separator, progress), report)
        _write_texts(target, wanted, _some(texts, source), separator)
        return report
    documents = read_documents(source, tokenizer, kind, separator, workers, progress)
    if wanted in TEXTS:
        _write_texts(target, wanted, _some(_decoded(documents, tokenizer, report), source), separator)
        return report
    documents = _some((one for _, one in _counted(documents, report, marks=wanted == "tfrecord")), source)
    if wanted == "tfrecord":
        write_records(target, documents)
    else:
        wide = tokenizer is not None and tokenizer.vocab_size > UINT16_IDS
        write_binidx(target, documents, dtype="int32" if wide else "uint16")
    return report


def read_documents(source, tokenizer=None, format=None, separator=None, workers=1, progress=None):
    """Yield (place, `Document`) for each document of a data set of any form, in order; those without tokens, too.

    tokenizer: encodes texts; of ids it says which there are. The other arguments are those of `convert`.

    Raises:
        ValueError: damaged data, text without a tokenizer, or an id that it does not have: where.
    """
    kind = kind_of(source, format)
    if kind not in TEXTS:
        parts = map(RecordFile if kind == "tfrecord" else Binidx, files_of(source, kind))
        return _checked(Joined(parts), tokenizer, progress)
    if tokenizer is None:
        raise ValueError(f"'{source}' holds text, which needs a tokenizer: name a vocabulary file.")
    return encoded(_items(source, kind, separator, progress), tokenizer, workers)


def _items(source, kind, separator, progress):
    """The items of a data set of texts, their bytes told as they go."""
    files = files_of(source, kind)
    total, done = sum(file.stat().st_size for file in files), 0
    for item in chain.from_iterable(read_jsonl(f) if kind == "jsonl" else read_text(f, separator) for f in files):
        yield item
        done += item.size
        if progress is not None:
            progress(done, total)


def _checked(data, tokenizer, progress):
    """(place, document) for each document of a data set of ids."""
    size = None if tokenizer is None else tokenizer.vocab_size
    for number, one in enumerate(data):
        place = place_of(data, number)
        yield place, checked(one, size, place)
        if progress is not None:
            progress(number + 1, len(data))


def _some(items, source):
    """The items, of which there must be one: a file that was cut to nothing replaces no data set."""
    number = -1
    for number, item in enumerate(items):  # noqa: B007 - wanted after the loop
        yield item
    if number < 0:
        raise ValueError(f"'{source}' holds no document that is not empty. Nothing is written.")


def _counted(documents, report, marks):
    """Those (place, document) with tokens. marks: whether what is written holds answer masks."""
    for place, one in documents:
        report.empty += not len(one.ids)
        if len(one.ids):
            report.documents += 1
            report.tokens += len(one.ids)
            report.unmarked += one.answer is not None and not marks
            yield place, one


def _texts(items, report):
    """The text of each item, where there is any."""
    for item in items:
        parts = parts_of(item)
        text = "".join(part.text for part in parts)
        report.empty += not text
        if text:
            report.documents += 1
            report.unmarked += not all(part.answer for part in parts)
            yield text


def _decoded(documents, tokenizer, report):
    """The text of each document of ids, where there is any."""
    for place, one in _counted(documents, report, marks=False):
        try:
            read = tokenizer.decode_bytes(one.ids)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        text = read.decode("utf-8", "replace")
        report.replaced += text.encode() != read
        yield text


def _write_texts(target, kind, texts, separator):
    if kind == "jsonl":
        write_jsonl(target, texts)
    else:
        write_text(target, texts, separator)


def open_documents(source, tokenizer=None, format=None, separator=None, workers=1, progress=None):
    """The documents of a data set of any form, to be asked for by number: ids stay in their files, texts are encoded
    and kept in memory. Arguments as for `read_documents`.
    """
    kind = kind_of(source, format)
    if kind in TEXTS:
        read = read_documents(source, tokenizer, kind, separator, workers, progress)
        return [document for _, document in read if len(document.ids)]
    return Joined(map(RecordFile if kind == "tfrecord" else Binidx, files_of(source, kind)))
