"""Reading tokens piece by piece, with compiled programs of few shapes."""

from functools import partial
from itertools import count

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models.backbone import last_real
from bert4keras_rwkv.models.blocks import Blocks, must_be
from bert4keras_rwkv.ops.compile import compiled, wants_fixed_shapes

SMALLEST = 16  # tokens; a shorter rest is padded to this, where shapes are compiled
LOGITS = 1 << 25  # how many there are at once when tokens are scored: 128 MB


class Reader:
    """Runs a backbone over (B, T) ids in pieces, each as one compiled program.

    Reading in pieces with the state passed on is reading at once. On a backend that compiles for each shape the last
    piece is padded (with masked tokens, which leave no trace) to a power of two, so that few programs are compiled.
    """

    def __init__(self, backbone):
        if must_be(backbone):
            whole, read, head = _as_it_is, *_block_by_block(backbone)
        else:
            whole = partial(_few_or_many, backbone)
            read, head = _at_once(backbone), backbone.logits

        def all_logits(ids, wkv, shift, present):
            hidden, wkv, shift = read(ids, wkv, shift, present)
            return head(hidden), wkv, shift

        def absorb(ids, wkv, shift, present, before):
            hidden, wkv, shift = read(ids, wkv, shift, present)
            hidden = last_real(hidden, present)
            if present is not None and before is not None:
                hidden = ops.where(ops.any(present, axis=1, keepdims=True), hidden, before)
            return hidden, wkv, shift

        def last_logits(ids, wkv, shift, present):
            hidden, wkv, shift = absorb(ids, wkv, shift, present, None)
            return head(hidden), wkv, shift

        def scores(ids, targets, wkv, shift, present):
            logits, wkv, shift = all_logits(ids, wkv, shift, present)
            own = ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            likeliest = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), targets)
            return own - ops.logsumexp(logits, axis=-1), likeliest, wkv, shift

        self._all, self._absorb, self._step = whole(all_logits), whole(absorb), whole(last_logits)
        self._head, self._scores = whole(head), whole(scores)
        self._vocab_size = backbone.config.vocab_size
        self._width, self._dtype = backbone.config.hidden_size, backbone.compute_dtype

    def logits(self, ids, wkv, shift, present=None, chunk=256):
        """ids (B, T) -> logits (B, T, V) float32, wkv, shift."""
        parts = []
        for piece, mask, length in _pieces(ids, present, chunk):
            part, wkv, shift = self._all(piece, wkv, shift, mask)
            parts.append(part[:, :length] if length < part.shape[1] else part)
        return (parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)), wkv, shift

    def last_logits(self, ids, wkv, shift, present=None, chunk=256):
        """ids (B, T) -> logits (B, V) float32 after each row's last real token, wkv, shift."""
        if ids.shape[1] == 1:
            return self._step(ids, wkv, shift, present)
        hidden = ops.zeros((len(ids), self._width), self._dtype)
        for piece, mask, _ in _pieces(ids, present, chunk):
            hidden, wkv, shift = self._absorb(piece, wkv, shift, mask, hidden)
        return self._head(hidden), wkv, shift

    def scores(self, ids, targets, wkv, shift, present=None, chunk=256):
        """ids, targets (B, T) -> log-probability of each target (B, T), whether it is the likeliest, wkv, shift.

        The first two are NumPy arrays. However long the text, there are at most `LOGITS` logits at a time, or those of
        one token of each row.
        """
        chunk, parts = min(chunk, _power_of_two(LOGITS // (len(ids) * self._vocab_size))), []
        for start, (piece, mask, length) in zip(count(0, chunk), _pieces(ids, present, chunk)):
            wanted = np.zeros_like(piece)
            wanted[:, :length] = targets[:, start : start + length]
            *part, wkv, shift = self._scores(piece, wanted, wkv, shift, mask)
            parts.append((*part, length))
        values, likeliest = (
            np.concatenate([ops.convert_to_numpy(part[i])[:, : part[-1]] for part in parts], axis=1) for i in (0, 1)
        )
        return values, likeliest, wkv, shift


def _at_once(backbone):
    """A function (ids, wkv, shift, present) -> (hidden states (B, T, D), wkv, shift), to be compiled."""

    def read(ids, wkv, shift, present):
        hidden, state = backbone.read(ids, backbone.unpack(wkv, shift), present)
        return (hidden, *backbone.pack(state))

    return read


def _block_by_block(backbone):
    """The same in programs of one block, and the head, whose logits lie where all answers do."""
    blocks = Blocks(backbone)
    logits = compiled(backbone.logits, blocks.behind)

    def read(ids, wkv, shift, present):
        hidden, state = blocks.read(ids, blocks.unpack(wkv, shift), present)
        return (hidden, *blocks.pack(state))

    return read, lambda hidden: backbone.placement.brought_home(logits(hidden))


def _few_or_many(backbone, function):
    """`function(x (B, T, ...), ...)` compiled; calls of one token come again and again."""
    again = backbone.placement is None
    one, many = (compiled(function, backbone.variables, again=each) for each in (again, False))
    return lambda x, *others: (one if x.shape[1] == 1 else many)(x, *others)


def _as_it_is(function):
    return function


def _pieces(ids, present, chunk):
    """NumPy ids (B, T) and present (B, T) or None -> (ids, present, how many of its tokens count) piece by piece."""
    for start in range(0, ids.shape[1], chunk):
        piece = ids[:, start : start + chunk]
        mask = None if present is None else present[:, start : start + chunk]
        length = piece.shape[1]
        padding = _padded(length, chunk) - length
        if padding:
            mask = np.ones(piece.shape, bool) if mask is None else mask
            piece, mask = (np.pad(x, ((0, 0), (0, padding))) for x in (piece, mask))
        yield piece, mask, length


def _padded(length, chunk):
    """The length of the program that reads a piece of `length` tokens."""
    if length in (1, chunk) or not wants_fixed_shapes():
        return length
    size = SMALLEST
    while size < length:
        size *= 2
    return min(size, chunk)


def _power_of_two(number):
    """The largest power of two that is not above `number`, 1 below that."""
    return 1 << max(number, 1).bit_length() - 1
