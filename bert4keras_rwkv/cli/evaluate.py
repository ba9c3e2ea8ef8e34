"""`evaluate`: how well a model predicts the texts of a file."""

import json
import time
from itertools import chain, islice

from bert4keras_rwkv.cli.data import named_tokenizer
from bert4keras_rwkv.cli.generate import load, tuned
from bert4keras_rwkv.cli.progress import Bar
from bert4keras_rwkv.data.convert import files_of, kind_of, read_documents
from bert4keras_rwkv.evaluation import evaluate_lambada, evaluate_text, read_lambada

AFTER_END = {"auto": None, "end": True, "nothing": False}


def run(arguments):
    """Load the model, let it read FILE, and print what came out, for people or with `--json` for programs."""
    kind = "jsonl" if arguments.task == "lambada" else kind_of(arguments.file, arguments.format)
    files = files_of(arguments.file, kind)  # before seconds go by with loading a model
    tokenizer = None if arguments.tokenizer is None else named_tokenizer(arguments.tokenizer)
    rwkv = load(arguments, tokenizer, only_reads=True)
    settings = {
        "batch_size": arguments.batch_size,
        "chunk_len": arguments.chunk_length,
        "state": tuned(rwkv, arguments),
        "after_end": AFTER_END[arguments.begin],
    }
    start = time.perf_counter()
    if arguments.task == "lambada":
        values = lambada_values(_lambada(arguments, rwkv, files, settings))
    else:
        values = text_values(_text(arguments, rwkv, kind, settings))
    found = {"file": arguments.file, "model": arguments.model, "task": arguments.task, **values}
    found["seconds"] = time.perf_counter() - start
    print(json.dumps(found, indent=2) if arguments.json else as_text(found))


def _text(arguments, rwkv, kind, settings):
    """The `TextScore` of the documents of FILE."""
    found = read_documents(arguments.file, rwkv.tokenizer, kind, arguments.separator)
    documents = list(islice(((place, one) for place, one in found if len(one.ids)), arguments.limit))
    with Bar("evaluate", "token") as bar:
        progress = _Progress(bar, sum(len(one.ids) for _, one in documents), 1)
        return evaluate_text(rwkv, documents, with_end=not arguments.no_end, progress=progress, **settings)


def _lambada(arguments, rwkv, files, settings):
    """The `LambadaScore` of the lines of FILE."""
    pairs = list(islice(chain.from_iterable(map(read_lambada, files)), arguments.limit))
    with Bar("evaluate", "example") as bar:
        return evaluate_lambada(rwkv, pairs, progress=_Progress(bar, len(pairs), 0), **settings)


def text_values(score):
    """A `TextScore` as plain values."""
    return {
        "documents": score.documents,
        "tokens": score.tokens,
        "bytes": score.size,
        "bits_per_byte": score.bits_per_byte,
        "nats_per_token": score.nats_per_token,
        "perplexity": score.perplexity,
        "accuracy": score.accuracy,
    }


def lambada_values(score):
    """A `LambadaScore` as plain values."""
    return {"examples": score.examples, "accuracy": score.accuracy, "perplexity": score.perplexity}


def as_text(found):
    """The values in lines."""
    of = {"text": "of a token", "lambada": "of a last word"}[found["task"]]
    lines = [f"{found['file']}, read by {found['model']}"]
    for name, value in found.items():
        if name in ("file", "model", "task") or value is None:
            continue
        label = f"{name} {of}" if name in ("accuracy", "perplexity") else name.replace("_", " ")
        lines.append(f"  {label:<28}{value:{_form(name, value)}}")
    return "\n".join(lines)


def _form(name, value):
    """How a number is shown."""
    return ".2%" if name == "accuracy" else "," if isinstance(value, int) else ",.4g"


class _Progress:
    """Called by `score_passages` with how many (texts, tokens) it read; moves a bar by one of the two."""

    def __init__(self, bar, total, which):
        self._bar, self._total, self._which, self._done = bar, total, which, 0

    def __call__(self, *read):
        self._done += read[self._which]
        self._bar(min(self._done, self._total), self._total)
