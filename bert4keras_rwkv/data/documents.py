"""Documents as token ids: what every data set holds, and the checks that they share."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """The ids of one document, without an end token.

    ids: (T,) int32. answer: (T,) int32, 1 where a token is to be learned; None where all are.
    """

    ids: np.ndarray
    answer: np.ndarray | None = None


def document(value):
    """A `Document` from one, or from a sequence of ids (list, tuple, array)."""
    if isinstance(value, Document):
        return value
    ids = np.asarray(value)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"A document is one sequence of token ids. Received: {ids.dtype} of shape {ids.shape}. Encode texts first."
        )
    return Document(ids.astype(np.int32))


def indexed(documents):
    """Documents that can be asked for by number: a sequence as it is, the items of another iterable as a list."""
    return documents if hasattr(documents, "__getitem__") else list(documents)


def answer_of(one):
    """The answer mask (T,) of a `Document`, ones where it has none."""
    return np.ones(len(one.ids), np.int32) if one.answer is None else one.answer


def sizes_of(documents):
    """(n,) int64: how many tokens each document of a sequence has. Taken from `documents.sizes` where there is one."""
    sizes = getattr(documents, "sizes", None)
    if sizes is None:
        sizes = [len(document(one).ids) for one in documents]
    return np.asarray(sizes, np.int64)


def checked(one, vocab_size, place):
    """The `Document` itself, if its ids are rows of a vocabulary of `vocab_size`; None: any id that is not negative."""
    ids = one.ids
    if ids.size and (ids.min() < 0 or (vocab_size is not None and ids.max() >= vocab_size)):
        position = int(np.argmax((ids < 0) | (ids >= (vocab_size or np.inf))))
        allowed = "is negative" if vocab_size is None else f"does not lie in the vocabulary, 0 .. {vocab_size - 1}"
        raise ValueError(
            f"{place}: id {ids[position]} at position {position} {allowed}. Was it encoded with another tokenizer?"
        )
    return one


class Joined(Sequence):
    """Several sequences of documents as one, the parts of a data set in many files."""

    def __init__(self, parts):
        self.parts = list(parts)
        self.sizes = np.concatenate([np.zeros(0, np.int64), *map(sizes_of, self.parts)])
        self._ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self):
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number):
        part, number = self._within(number)
        return self.parts[part][number]

    def place(self, number):
        """Where a document stands, for errors."""
        part, number = self._within(number)
        return place_of(self.parts[part], number)

    def _within(self, number):
        """Which part, and which document of it."""
        number = range(len(self))[number]
        part = bisect_right(self._ends, number)
        return part, number - (self._ends[part] - len(self.parts[part]))


def place_of(documents, number):
    """Where document `number` of a sequence stands, for errors."""
    place = getattr(documents, "place", None)
    return f"Document {number}" if place is None else place(number)
