"""Reading tokens piece by piece, with compiled programs of few shapes."""

import numpy as np
from keras import ops

from bert4keras_rwkv.generation.compile import compiled, wants_fixed_shapes

SMALLEST = 16  # tokens; a shorter rest is padded to this, where shapes are compiled


class Reader:
    """Runs a backbone over (B, T) ids in pieces, each as one compiled program.

    Reading in pieces with the state passed on is reading at once. On a backend that compiles for each shape the last
    piece is padded (with masked tokens, which leave no trace) to a power of two, so that few programs are compiled.
    """

    def __init__(self, backbone):
        def all_logits(ids, wkv, shift, present):
            hidden, state = backbone.read(ids, backbone.unpack(wkv, shift), present)
            return (backbone.logits(hidden), *backbone.pack(state))

        def absorb(ids, wkv, shift, present, before):
            hidden, state = backbone.hidden(ids, backbone.unpack(wkv, shift), present)
            if present is not None and before is not None:
                hidden = ops.where(ops.any(present, axis=1, keepdims=True), hidden, before)
            return (hidden, *backbone.pack(state))

        def last_logits(ids, wkv, shift, present):
            hidden, wkv, shift = absorb(ids, wkv, shift, present, None)
            return backbone.logits(hidden), wkv, shift

        variables = backbone.variables
        self._all = compiled(all_logits, variables)
        self._absorb = compiled(absorb, variables)
        self._step = compiled(last_logits, variables)
        self._head = compiled(backbone.logits, variables)
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
