"""What is to be written: the arguments of `generate` and `stream`, checked and in the form that programs take."""

import dataclasses
from numbers import Integral

import numpy as np

from bert4keras_rwkv.generation.loop import buffer_length
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.tokenizers.base import Tokenizer
from bert4keras_rwkv.tokenizers.prompts import token_ids
from bert4keras_rwkv.tokenizers.text_stream import TokenText

NEW_TOKENS = 256  # how many are written when neither max_length nor sequence_length says it


@dataclasses.dataclass(frozen=True)
class Request:
    """What a `Writer` is asked for.

    ids: (B, L) int32, prompts at the front. length, limit: (B,) int32, tokens of each prompt, and of prompt and answer
    together at most. state: RWKVState of batch B. seeds: (B, 2) int32, see `seeds`. ends: ids that end a row.
    tokenizer: what makes text of the answers, None where ids are wanted. stops: texts that end one.
    """

    ids: np.ndarray
    length: np.ndarray
    limit: np.ndarray
    state: RWKVState
    seeds: np.ndarray
    sampling: Sampling
    ends: tuple[int, ...]
    tokenizer: Tokenizer | None = None
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows, limits, *fields, **more):
        """A request for ragged rows of ids. limits: of each row; the other fields as they are."""
        length = np.array([len(row) for row in rows], "int32")
        return cls(padded(rows, max(limits)), length, np.array(limits, "int32"), *fields, **more)

    def end_row(self):
        """`ends` as (E,) int32 with -1 behind, E a power of four: few programs do for all of them."""
        width = 1
        while width < len(self.ends):
            width *= 4
        return np.array([*self.ends, *[-1] * (width - len(self.ends))], "int32")

    def texts(self):
        """A `TokenText` for each row, None where ids are wanted."""
        return [self.tokenizer and TokenText(self.tokenizer, self.stops) for _ in self.ids]


def texts_that_stop(stop_texts):
    """Stop texts as a tuple: a str, several, or none."""
    stops = (stop_texts,) if isinstance(stop_texts, str) else tuple(stop_texts or ())
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f"`stop_texts` is a text or several, none of them empty. Received: {stop_texts!r}.")
    return stops


def with_text(sampling, tokenizer, vocab_size):
    """A `Sampling` that draws no row of the head without a text: the World vocabulary fills 65,530 of 65,536."""
    return dataclasses.replace(sampling, mask_output=(*sampling.mask_output, *tokenizer.without_text(vocab_size)))


def end_ids(stop_token_ids, tokenizer, vocab_size):
    """The ids that end a row, a tuple. 'auto': the tokenizer's end token."""
    if stop_token_ids is None:
        return ()
    if isinstance(stop_token_ids, str):
        if stop_token_ids != "auto":
            raise ValueError(f"`stop_token_ids` is an id, a list of ids, None or 'auto'. Received: {stop_token_ids!r}.")
        end = None if tokenizer is None else tokenizer.end_token
        return () if end is None else (end,)
    return tuple(token_ids(stop_token_ids, vocab_size).ravel().tolist())


def limits(lengths, max_length, max_new_tokens, sequence_length):
    """How many tokens each row has at most, its prompt included. lengths: those of the prompts."""
    if max_new_tokens is not None:
        if max_length is not None:
            raise ValueError("Give `max_length`, prompt and answer together, or `max_new_tokens`, not both.")
        new = whole_number("max_new_tokens", max_new_tokens, 0)
        return [whole_number("prompt and max_new_tokens", length + new, 0) for length in lengths]
    if max_length is None:
        max_length = max(lengths) + NEW_TOKENS if sequence_length is None else sequence_length
    max_length = whole_number("max_length", max_length, 1)
    if max(lengths) > max_length:
        raise ValueError(
            f"The longest prompt has {max(lengths)} tokens; `max_length`, prompt and answer together, is {max_length}."
        )
    return [max_length] * len(lengths)


def whole_number(name, value, least):
    """`value` as an int of at least `least`; a ValueError that names the argument for anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value < 2**31:
        raise ValueError(
            f"`{name}` is a number of tokens, an int from {least} to 2^31 - 1. Received: {name}={value!r}."
        )
    return int(value)


def seeds(seed, batch):
    """(B, 2) int32 (seed, tokens generated before): from an int, such an array, or None for new ones.

    Of an int the last 32 bits count.
    """
    if seed is None:
        first = np.random.default_rng().integers(-(2**31), 2**31, batch)
        return np.stack([first, np.zeros(batch)], axis=1).astype("int32")
    array = np.asarray(seed)
    if array.ndim == 0:
        if isinstance(seed, bool) or not isinstance(array[()], Integral):
            raise ValueError(f"`seed` is an int, an array ({batch}, 2), or None. Received: {seed!r}.")
        first = (int(array) & 0xFFFFFFFF) + np.arange(batch, dtype="int64") & 0xFFFFFFFF
        return np.stack([first.astype("uint32").view("int32"), np.zeros(batch, "int32")], axis=1)
    if array.shape != (batch, 2) or array.dtype.kind not in "iu":
        raise ValueError(
            f"`seed` is an int or an array of ints ({batch}, 2). Received: {array.dtype}, shape {array.shape}."
        )
    return (array.astype("int64") & 0xFFFFFFFF).astype("uint32").view("int32")


def padded(rows, length):
    """Rows of ids as (B, L) int32 with zeros behind, L at least `length`."""
    ids = np.zeros((len(rows), buffer_length(length)), "int32")
    for out, row in zip(ids, rows, strict=True):
        out[: len(row)] = row
    return ids
