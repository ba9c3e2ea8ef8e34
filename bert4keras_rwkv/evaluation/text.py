"""Perplexity and bits per byte of documents."""

import math
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from bert4keras_rwkv.data.documents import Document, answer_of, checked, document
from bert4keras_rwkv.data.encoding import encoded
from bert4keras_rwkv.data.sources import from_iterable
from bert4keras_rwkv.evaluation.scoring import passage, score_passages
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer

END = 0  # the end of a document, where no tokenizer says another id


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts documents.

    tokens: how many were asked for. size: the bytes that they stand for, None where no tokenizer says it. nats: the sum
    of minus their log-probabilities. hits: how many were the likeliest.
    """

    documents: int
    tokens: int
    size: int | None
    nats: float
    hits: int

    @property
    def nats_per_token(self):
        """The mean cross-entropy of a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self):
        """e to the mean cross-entropy of a token. It depends on the vocabulary; bits per byte do not."""
        return exponential(self.nats_per_token)

    @property
    def bits_per_byte(self):
        """What all tokens cost, in bits, for each byte of text; None where bytes are not known."""
        return self.nats / math.log(2) / self.size if self.size else None

    @property
    def accuracy(self):
        """The share of tokens that were the likeliest."""
        return self.hits / self.tokens


def evaluate_text(
    rwkv, documents, batch_size=8, chunk_len=256, state=None, after_end=None, with_end=True, progress=None
):
    """Let a model read documents and say how well it predicted them: a `TextScore`.

    documents: any iterable of `Document`s, (place, `Document`) as `read_documents` yields them, ids, or texts as
    `encode_documents` takes them (str, {"text": ...}, conversations, of which only answers count). Each is read whole,
    with nothing before it but an end token, so that its first token counts, too. after_end: whether that token is read;
    None: unless texts begin in a `state` or a tuned one, which stand for what came before; then first tokens do not
    count. with_end: whether the end token behind a document counts, too; it has no bytes. state: RWKVState of one row
    in which each begins. batch_size, chunk_len, progress: see `score_passages`.

    Raises:
        ValueError: an id that the model does not have, text that cannot be encoded, no token to count, or a model that
            computes what is no number: where.
    """
    if after_end is None:
        after_end = begins_at_zero(rwkv, state)
    size = _ByteCount(rwkv.tokenizer)

    def passages():
        for place, one in _documents(documents, rwkv.tokenizer):
            if len(one.ids):
                ours = _passage(checked(one, rwkv.config.vocab_size, place), rwkv.tokenizer, after_end, with_end, place)
                size.add(ours)
                yield ours

    number = tokens = hits = 0
    nats = 0.0
    for found in score_passages(rwkv, passages(), batch_size, chunk_len, state, progress):
        number += 1
        tokens += len(found.log_p)
        nats -= float(found.log_p.sum())
        hits += int(found.likeliest.sum())
    if not tokens:
        raise ValueError(
            f"There is no token to predict in {number} documents: they are empty, of one token, or without answers."
        )
    return TextScore(number, tokens, size.bytes, nats, hits)


def end_ids(tokenizer, wanted=True):
    """The end token as a list of ids, or none."""
    end = None if tokenizer is None else tokenizer.end_token
    return [END if end is None else end] if wanted else []


def begins_at_zero(rwkv, state):
    """Whether nothing was read before a text: a state, given or tuned, stands for what was, and takes no end token."""
    return state is None and not rwkv.backbone.start_states


def exponential(x):
    """e to the x, infinite rather than too large."""
    return math.exp(x) if x < 709 else math.inf


class _ByteCount:
    """Sums the bytes of the tokens that count."""

    def __init__(self, tokenizer):
        self._tokenizer, self.bytes = tokenizer, None if tokenizer is None else 0

    def add(self, one):
        if self._tokenizer is not None:
            try:
                self.bytes += len(self._tokenizer.decode_bytes(one.ids[one.counts]))
            except ValueError as error:
                raise ValueError(f"{one.place}: {error}") from error


def _documents(values, tokenizer):
    """(place, `Document`) for each; texts that follow each other are encoded together."""
    for text, group in groupby(enumerate(values), lambda pair: _is_text(pair[1])):
        if text:
            items = (item._replace(place=f"Document {i}") for i, value in group for item in from_iterable([value]))
            yield from encoded(items, need_tokenizer(tokenizer))
        else:
            yield from (_placed(value, f"Document {i}") for i, value in group)


def _placed(value, place):
    """(place, `Document`) of ids, or of such a pair itself."""
    placed = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Document)
    return value if placed else (place, document(value))


def _is_text(value):
    """Whether a document is text or parsed JSON, not ids."""
    return isinstance(value, str | dict) or (
        isinstance(value, list) and len(value) > 0 and all(isinstance(turn, dict) for turn in value)
    )


def _passage(one, tokenizer, after_end, with_end, place):
    """A document between end tokens. That behind it counts if the token before it does, as in training."""
    answer = np.asarray(answer_of(one), bool)
    before, behind = end_ids(tokenizer, after_end), end_ids(tokenizer, with_end)
    return passage([(before, False), (one.ids, answer), (behind, answer[-1])], place)
