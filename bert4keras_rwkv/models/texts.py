"""The forms a prompt comes in, and the same forms for the answer."""

from numbers import Integral

import numpy as np


def token_ids(ids, vocab_size):
    """`ids` as a NumPy int32 array, checked: whole numbers, each in the vocabulary."""
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Token ids are whole numbers. Received an array of {array.dtype}: {_shown(ids)}.")
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        wrong = array[(array < 0) | (array >= vocab_size)].ravel()[0]
        raise ValueError(f"A token id is 0 to {vocab_size - 1} in this model's vocabulary. Received: {wrong}.")
    return array.astype("int32")


class Prompts:
    """One or several prompts: str, list of str, ids, or a ragged list of ids.

    rows: a list of NumPy int32 arrays. `answers` puts rows of ids back into the form that came in.
    """

    def __init__(self, inputs, tokenizer, vocab_size):
        if hasattr(inputs, "shape") and not isinstance(inputs, np.ndarray):
            inputs = np.asarray(inputs)
        self.tokenizer = tokenizer
        self.is_text = isinstance(inputs, str) or (
            isinstance(inputs, list | tuple) and len(inputs) > 0 and all(isinstance(x, str) for x in inputs)
        )
        if self.is_text:
            self.single = isinstance(inputs, str)
            rows = need_tokenizer(tokenizer).encode([inputs] if self.single else list(inputs))
        else:
            rows = list(inputs)
            self.single = len(rows) == 0 or isinstance(rows[0], Integral | np.integer)
            rows = [rows] if self.single else rows
        self.rows = [token_ids(row, vocab_size) for row in rows]
        if any(row.ndim != 1 for row in self.rows):
            raise ValueError(f"A prompt is a str or a list of ids, or a list of such. Received: {_shown(inputs)}.")
        empty = [i for i, row in enumerate(self.rows) if not len(row)]
        if empty or not self.rows:
            raise ValueError(
                f"A prompt needs at least one token; prompt {empty[0] if empty else 0} has none. "
                "Use '\\n' or id 0 (the end of a document) to begin a new text."
            )

    def padded(self, length):
        """The rows as (B, length) int32, zeros behind, and their lengths (B,) int32."""
        ids = np.zeros((len(self.rows), length), "int32")
        for out, row in zip(ids, self.rows, strict=True):
            out[: len(row)] = row
        return ids, np.array([len(row) for row in self.rows], "int32")

    def answers(self, rows, stops):
        """Rows of ids in the form of the input. stops: each row's ids before which a text is cut; ids keep them."""
        if self.is_text:
            cut = [row[:-1] if len(row) and row[-1] in ends else row for row, ends in zip(rows, stops, strict=True)]
            rows = self.tokenizer.decode(cut)
        else:
            rows = [[int(i) for i in row] for row in rows]
        return rows[0] if self.single else rows


def need_tokenizer(tokenizer):
    """The tokenizer, or a ValueError that says how to give one."""
    if tokenizer is None:
        raise ValueError(
            "Text needs a tokenizer, and none was found beside the weights. "
            "Set RWKV.tokenizer = RWKV_TOKENIZER(path), or pass tokenizer=, or use ids."
        )
    return tokenizer


def _shown(value):
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
