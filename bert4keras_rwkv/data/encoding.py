"""Texts to ids in bulk: in several processes, by the Rust tokenizer where it is installed and agrees with ours."""

import logging
import multiprocessing
import signal
import tempfile
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from bert4keras_rwkv.data.documents import Document
from bert4keras_rwkv.data.sources import from_iterable, parts_of
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.tokenizers.base import utf8

CHUNK_ITEMS, CHUNK_BYTES = 512, 1 << 20  # what a process is given at once
PROBE = (
    *("", " ", "\n\n\n", "\x00\x01", "  a \n b\t", "\r\n=====----", "a" * 999, "caf\u00e9 \u4e2d\u6587\uff0c\u6d4b"),
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",  # several code points each
)

logger = logging.getLogger("bert4keras_rwkv")
_encoder = None  # of a worker process


def encoded(items, tokenizer, workers=1):
    """Yield (place, `Document`) for each `Item`, in order. Documents without tokens are yielded, too.

    workers: processes; 1 encodes in this one. Only a few chunks for each are read ahead.

    Raises:
        ValueError: text that cannot be parsed or encoded: where.
    """
    if workers < 1:
        raise ValueError(f"`workers` is how many processes encode, at least 1. Received: workers={workers}.")
    if workers == 1:
        yield from chain.from_iterable(map(partial(_encode, bulk_encoder(tokenizer)), _chunks(items)))
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool, waiting = ProcessPoolExecutor(workers, spawn, _begin, (tokenizer,)), deque()
    try:
        for chunk in _chunks(items):
            waiting.append(pool.submit(_encode_there, chunk))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def encode_documents(values, tokenizer, workers=1):
    """The `Document`s of texts, conversations, {"text": ...} or a mixture, from any iterable; empty ones left out."""
    return [one for _, one in encoded(from_iterable(values), tokenizer, workers) if len(one.ids)]


def bulk_encoder(tokenizer):
    """A function: list of str -> list of ids. `pyrwkv-tokenizer` where it gives what `tokenizer` gives, else that.

    It is asked for single texts, and for every token that is text by itself.
    """
    rust = _rust(tokenizer)
    if rust is None:
        return tokenizer.encode
    texts = [*PROBE, *_tokens(tokenizer)]
    if rust(texts) != tokenizer.encode(texts):
        logger.warning("pyrwkv-tokenizer encodes otherwise than we do: not used.")
        return tokenizer.encode
    return rust


def document_of(parts, encode):
    """The `Document` of the `Part`s of a text, each encoded by itself. encode: as `bulk_encoder` gives it."""
    return _joined(parts, encode([part.text for part in parts]))


def _rust(tokenizer):
    """`encode_batch` of the Rust tokenizer with our vocabulary; None without it, or for other kinds of tokenizers."""
    if not isinstance(tokenizer, RWKV_TOKENIZER) or tokenizer.end_token or tokenizer.without_text(tokenizer.vocab_size):
        return None
    try:
        from pyrwkv_tokenizer import WorldTokenizer
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        tokenizer.save(path)
        return WorldTokenizer(str(path)).encode_batch


def _tokens(tokenizer):
    """The tokens that are valid UTF-8, as str."""
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        text = token.decode("utf-8", "replace")
        if text.encode() == token:
            yield text


def _chunks(items):
    """Lists of items, each of some size."""
    chunk, size = [], 0
    for item in items:
        chunk.append(item)
        size += item.size
        if len(chunk) >= CHUNK_ITEMS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _begin(tokenizer):
    """In a worker: what `_encode_there` uses. Ctrl-C is the other process' business."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = bulk_encoder(tokenizer)


def _encode_there(chunk):
    return _encode(_encoder, chunk)


def _encode(encode, chunk):
    """[(place, document)] of a chunk: all its texts at once, or one by one to find the one that cannot be encoded."""
    parts = [parts_of(item) for item in chunk]
    try:
        ids = iter(encode([part.text for ours in parts for part in ours]))
        found = [_joined(ours, [next(ids) for _ in ours]) for ours in parts]
    except ValueError:
        found = [_one(item, ours, encode) for item, ours in zip(chunk, parts, strict=True)]
    return [(item.place, one) for item, one in zip(chunk, found, strict=True)]


def _one(item, parts, encode):
    try:
        for part in parts:
            utf8(part.text)  # its error says more than that of the Rust tokenizer
        return document_of(parts, encode)
    except ValueError as error:
        raise ValueError(f"{item.place} cannot be encoded: {error}") from error


def _joined(parts, ids):
    """Encoded parts as one `Document`."""
    whole = np.fromiter(chain.from_iterable(ids), np.int32)
    if all(part.answer for part in parts):
        return Document(whole)
    counts = [np.full(len(one), part.answer, np.int32) for one, part in zip(ids, parts, strict=True)]
    return Document(whole, np.concatenate(counts))
