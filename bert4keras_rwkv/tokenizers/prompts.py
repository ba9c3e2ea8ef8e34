"""The forms a prompt comes in, and the same forms for the answer."""

from numbers import Integral

import numpy as np


def token_ids(ids, vocab_size):
    """`ids` as a NumPy int32 array, checked: whole numbers, each in the vocabulary."""
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise ValueError(f"Rows of token ids have one length. Received: {_shown(ids)}.") from error
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Token ids are whole numbers. Received an array of {array.dtype}: {_shown(ids)}.")
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        wrong = array[(array < 0) | (array >= vocab_size)].ravel()[0]
        raise ValueError(f"A token id is 0 to {vocab_size - 1} in this model's vocabulary. Received: {wrong}.")
    return array.astype("int32")


def unix_lines(text):
    """Text with line ends as the models have read them: one line feed each."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Prompts:
    """One or several prompts: str, list of str, ids, or a ragged list of ids. Line ends of a str become line feeds.

    rows: a list of NumPy int32 arrays. `answers` puts answers back into the form that came in.
    """

    def __init__(self, inputs, tokenizer, vocab_size):
        if hasattr(inputs, "shape") and not isinstance(inputs, np.ndarray):
            inputs = np.asarray(inputs)
        if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "USO" and inputs.ndim <= 1:
            texts = strings_in(inputs) or inputs
            inputs = texts if inputs.ndim else texts[0]
        self.tokenizer = tokenizer
        self.is_text = isinstance(inputs, str) or (
            isinstance(inputs, list | tuple) and len(inputs) > 0 and all(isinstance(x, str) for x in inputs)
        )
        if self.is_text:
            self.single = isinstance(inputs, str)
            texts = [unix_lines(text) for text in ([inputs] if self.single else inputs)]
            rows = need_tokenizer(tokenizer).encode(texts)
        elif isinstance(inputs, list | tuple) or (isinstance(inputs, np.ndarray) and inputs.ndim > 0):
            rows = list(inputs)
            self.single = len(rows) == 0 or isinstance(rows[0], Integral | np.integer)
            rows = [rows] if self.single else rows
        else:
            raise _no_prompt(inputs)
        self.rows = [token_ids(row, vocab_size) for row in rows]
        if any(row.ndim != 1 for row in self.rows):
            raise _no_prompt(inputs)
        empty = ["this one" if self.single else f"prompt {i}" for i, row in enumerate(self.rows) if not len(row)]
        if empty:
            raise ValueError(
                f"A prompt needs at least one token; {empty[0]} has none. "
                "Use '\\n' or id 0 (the end of a document) to begin a new text."
            )

    def answers(self, rows, texts, strip_prompt):
        """Answers in the form of the input, behind their prompts unless `strip_prompt`.

        rows: lists of ids. texts: what they show, for prompts of text.
        """
        if self.is_text:
            before = [""] * len(rows) if strip_prompt else self.tokenizer.decode([row.tolist() for row in self.rows])
            rows = texts
        else:
            before = [[] if strip_prompt else row.tolist() for row in self.rows]
        answers = [prompt + answer for prompt, answer in zip(before, rows, strict=True)]
        return answers[0] if self.single else answers


def need_tokenizer(tokenizer):
    """The tokenizer, or a ValueError that says how to give one."""
    if tokenizer is None:
        raise ValueError(
            "Text needs a tokenizer, and none was found beside the weights. "
            "Set RWKV.tokenizer = RWKV_TOKENIZER(path), or pass tokenizer=, or use ids."
        )
    return tokenizer


def _no_prompt(inputs):
    return ValueError(f"A prompt is a str or a list of ids, or a list of such. Received: {_shown(inputs)}.")


def strings_in(texts):
    """A list of str from a list, a tuple or an array of str or of UTF-8 bytes; None for anything else."""
    texts = np.ravel(texts).tolist() if isinstance(texts, np.ndarray) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str | bytes) for text in texts):
        return None
    return [text.decode("utf-8") if isinstance(text, bytes) else text for text in texts]


def _shown(value):
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
