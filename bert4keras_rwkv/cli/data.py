"""`data`: a data set in another form, encoded or decoded on the way."""

import os
import sys
from pathlib import Path

from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.data.convert import TEXTS, convert, files_of, kind_of
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, VOCABULARY_NAME, load_tokenizer
from bert4keras_rwkv.weights.checkpoint import named

WORLD = "world"
SMALL = 64 << 20  # bytes that are encoded sooner than other processes have started


def run(arguments):
    """Read SRC and write DST; say what was written, and what it lacks."""
    source, target = arguments.source, arguments.target
    kind = kind_of(source, arguments.format)
    workers = _workers(arguments.workers, files_of(source, kind))
    tokenizer = None if arguments.tokenizer is None else named_tokenizer(arguments.tokenizer)
    with Bar(Path(target).name, "B" if kind in TEXTS else "document") as progress:
        report = convert(
            source, target, tokenizer, arguments.to, kind, arguments.separator, workers=workers, progress=progress
        )
    tokens = f", {report.tokens} tokens" if report.tokens else ""
    print(f"Wrote {target}: {report.documents} documents{tokens}")
    for count, what in (
        (report.empty, "Empty documents, left out"),
        (report.unmarked, "Conversations of which this form cannot say what is the answer (.tfrecord can)"),
        (report.replaced, "Documents that are no valid UTF-8, with U+FFFD for what is not"),
    ):
        if count:
            print(f"{what}: {count}", file=sys.stderr)


def _workers(wanted, files):
    """How many processes encode."""
    small = sum(file.stat().st_size for file in files) < SMALL
    return wanted or (1 if small else os.cpu_count() or 1)


def named_tokenizer(name):
    """`world`, a vocabulary file, or that in a preset folder or in a shipped model."""
    if name == WORLD and not Path(name).exists():
        return RWKV_TOKENIZER()
    path = Path(named(name))
    return load_tokenizer(path / VOCABULARY_NAME if path.is_dir() else path)
