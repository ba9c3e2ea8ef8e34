"""`convert`: weights into another format, tensor by tensor."""

import os
from pathlib import Path

from tqdm import tqdm

from bert4keras_rwkv.tokenizers import find_tokenizer
from bert4keras_rwkv.weights.files import config_of, named, open_weights
from bert4keras_rwkv.weights.formats.registry import formats
from bert4keras_rwkv.weights.rules import in_order, rules_of


def run(arguments):
    """Read SRC and write DST; what DST is, its name says."""
    os.environ.setdefault(
        "KERAS_BACKEND", "numpy"
    )  # the table of a version lies beside its layers; nothing is computed
    source, target = named(arguments.source), Path(arguments.target)
    written = _format(target)
    with open_weights(source) as tensors:
        config = config_of(source, tensors)
        ordered = in_order(rules_of(config), tensors)
        with _Bar(target.name) as progress:
            tokenizer = find_tokenizer(source, config.vocab_size)
            written.write(target, ordered, config, arguments.dtype, tokenizer, progress)
    print(f"Wrote {target}")


def _format(target):
    """The format that the suffix of DST means; without one a preset folder."""
    suffixes = {known.suffix: known for known in reversed(formats()) if known.write is not None}
    if target.suffix not in suffixes:
        names = ", ".join(f"NAME{suffix}" for suffix in suffixes if suffix)
        raise ValueError(f"Cannot write '{target}'. DST is {names}, or a folder for a preset.")
    return suffixes[target.suffix]


class _Bar:
    """A progress bar on stderr when it is a terminal; called with (done, total)."""

    def __init__(self, label):
        self._bar = tqdm(desc=label, unit="tensor", disable=None, leave=False)

    def __call__(self, done, total):
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
