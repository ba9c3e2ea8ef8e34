"""Vocabulary surgery: rows of embedding and head are kept, put in another order and averaged on the way in."""

import math
import operator
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import numpy as np

from bert4keras_rwkv.weights.tensors import Tensor, Tensors, WeightsError

TABLES = ("emb.weight", "head.weight")  # (V, C) in every version


@dataclass(frozen=True)
class Surgery:
    """Which rows a vocabulary is made of, by their ids in the file.

    keep: ids, or the range of all. compounds: (ids, weights) of the averages behind them. `surgery` checks both.
    """

    keep: tuple | range
    compounds: tuple

    @property
    def size(self):
        """Rows of the new vocabulary."""
        return len(self.keep) + len(self.compounds)

    def applied(self, tensors, vocab_size):
        """`tensors` with new embedding and head, lazily. `vocab_size`: the rows that both should have in the file."""
        entries = tensors.entries()
        for name in TABLES:
            if name not in entries:
                continue  # whoever fills the model says so
            if len(entries[name].shape) != 2 or entries[name].shape[0] != vocab_size:
                raise WeightsError(
                    f"`keep_tokens` and `compound_tokens` choose from {vocab_size} rows, as the config says. "
                    f"'{name}' has the shape {entries[name].shape}."
                )
            entries[name] = self._table(entries[name])
        return Tensors(entries, tensors.metadata)

    def _table(self, entry):
        """The table made of the rows of `entry`. With averages it is at least float32: they are not rounded."""
        dtype = np.promote_types(entry.dtype, np.float32) if self.compounds else entry.dtype

        def read():
            return self._rows(entry.read().__getitem__, 0, self.size, dtype)

        def rows(start, stop):
            return self._rows(lambda ids: _gathered(entry.rows, ids), start, stop, dtype)

        def columns(start, stop):
            return self._rows(entry.columns(start, stop).__getitem__, 0, self.size, dtype)

        return Tensor(
            (self.size, entry.shape[1]),
            dtype,
            read,
            None if entry.rows is None else rows,
            None if entry.columns is None else columns,
            entry.piece,
        )

    def _rows(self, take, start, stop, dtype):
        """Rows start to stop of the new table; `take(ids)` gives rows of the old one."""
        kept = list(self.keep[start:stop])
        parts = [take(kept).astype(dtype, copy=False)] if kept else []
        first = max(start - len(self.keep), 0)
        for ids, weights in self.compounds[first : max(stop - len(self.keep), 0)]:
            mean = np.average(take(list(ids)).astype(np.float64), axis=0, weights=weights)
            parts.append(mean[None].astype(dtype))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def surgery(keep_tokens, compound_tokens, vocab_size):
    """The `Surgery` that bert4keras's two arguments ask for, or None if they ask for nothing.

    keep_tokens: ids in their new order, None for all. compound_tokens: for each new row a list of ids, for their mean,
    or (ids, weights), for their weighted mean; ids are those of the file, whatever is kept.

    Raises:
        ValueError: an id that the file does not have, one that is kept twice, or weights that do not fit.
    """
    if keep_tokens is None and not compound_tokens:
        return None
    keep = range(vocab_size) if keep_tokens is None else _ids(keep_tokens, "keep_tokens", vocab_size)
    if len(set(keep)) < len(keep):
        seen = set()
        twice = next(token_id for token_id in keep if token_id in seen or seen.add(token_id))
        raise ValueError(f"`keep_tokens` has each id once. Received: {twice} at several places.")
    compounds = () if compound_tokens is None else compound_tokens
    return Surgery(keep, tuple(_compound(one, index, vocab_size) for index, one in enumerate(compounds)))


def _compound(given, index, vocab_size):
    """(ids, weights) of one average."""
    name = f"compound_tokens[{index}]"
    weighted = isinstance(given, list | tuple) and len(given) == 2 and hasattr(given[0], "__len__")
    ids, weights = given if weighted else (given, None)
    ids = _ids(ids, name, vocab_size)
    if weights is None:
        return ids, (1.0,) * len(ids)
    weights = tuple(weights)
    if len(weights) != len(ids) or not all(isinstance(x, Real | np.number) and math.isfinite(x) for x in weights):
        raise ValueError(f"`{name}` has a finite weight for each of its {len(ids)} ids. Received: {weights}.")
    if sum(weights) == 0:
        raise ValueError(f"The weights of `{name}` have a sum other than 0, which they are divided by.")
    return ids, tuple(map(float, weights))


def _ids(given, name, vocab_size):
    """A list of ids, checked, as a tuple."""
    try:
        ids = tuple(map(operator.index, given))
    except TypeError as error:
        raise ValueError(f"`{name}` is a list of ids. Received: {str(given)[:60]}.") from error
    if not ids:
        raise ValueError(f"`{name}` has at least one id. Received none.")
    wrong = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise ValueError(f"`{name}` has ids of the file, 0 to {vocab_size - 1}. Received: {wrong}.")
    return ids


def _gathered(rows, ids):
    """Some rows of a table; those that lie side by side are read at once."""
    edges = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1] + 1), len(ids)]
    return np.concatenate([rows(ids[a], ids[b - 1] + 1) for a, b in pairwise(edges)])
