"""A text as one vector: the mean of what the network makes of its tokens, read in pieces of few compiled shapes."""

from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models.blocks import Blocks, worthwhile
from bert4keras_rwkv.ops.compile import compiled

SIZES = (32, 256)  # tokens of the pieces that there are programs for


class Read(NamedTuple):
    """How far a text is read: the network's state, the sum of the outputs, (1, D) NumPy, and how many they are."""

    state: object
    total: np.ndarray
    count: int


class Embedder:
    """Vectors of texts, piece by piece, so that others can compute in between.

        read = embedder.begin()
        read = embedder.read(read, ids[:256])
        vector = embedder.vector(read)

    start: an RWKVState of one row in which every text begins.
    """

    def __init__(self, backbone, start):
        self._backbone, self.width = backbone, backbone.config.hidden_size
        self._blocks = Blocks(backbone) if worthwhile(backbone) else None
        description = backbone.description(__name__)

        def program(function, variables=()):
            return compiled(function, variables, lambda: description.of(function.__name__))

        if self._blocks is None:
            unpack, self._piece = program(backbone.unpack), program(self._read_piece, backbone.variables)
        else:
            unpack, self._sum = self._blocks.unpack, program(self._summed, self._blocks.behind)
        zeros = np.zeros((1, self.width), backbone.state_dtypes[0])
        self._begun = Read(unpack(start.wkv, start.shift), zeros, 0)

    def compile(self):
        """Run each program, so that none is compiled later."""
        for size in SIZES:
            self.read(self.read(self._begun, [0] * size), [0] * size)

    def begin(self):
        """The `Read` of no token."""
        return self._begun

    def read(self, read, ids):
        """The `Read` after a piece, a list of at least one and at most `SIZES[-1]` ids. It is computed on return."""
        size = next(size for size in SIZES if size >= len(ids))
        piece = np.zeros((1, size), "int32")
        piece[0, : len(ids)] = ids
        present = np.arange(size)[None] < len(ids)
        if self._blocks is None:
            total, state = self._piece(piece, read.state, present)
        else:
            x, state = self._blocks.read(piece, read.state, present)
            total = self._sum(x, present)
        return Read(state, read.total + ops.convert_to_numpy(total), read.count + len(ids))

    def vector(self, read):
        """The mean of what the final norm gives, of unit length: (D,) float32. ValueError if it is not finite."""
        vector = read.total[0] / read.count
        length = np.linalg.norm(vector)
        if not np.isfinite(length):
            raise ValueError("The text has no vector, for the numbers of the network are not finite.")
        return (vector / (length or 1.0)).astype("float32")

    def _read_piece(self, ids, state, present):
        x, state = self._backbone.read(ids, state, present)
        if self._backbone.placement is not None:
            present = self._backbone.placement.brought(present, self._backbone.head)
        return self._summed(x, present), state

    def _summed(self, x, present):
        """(1, T, D) before the final norm -> the sum of the outputs of the tokens that are there, (1, D)."""
        outputs = ops.cast(self._backbone.outputs(x), self._backbone.state_dtypes[0])
        return ops.sum(ops.where(ops.expand_dims(present, -1), outputs, 0.0), axis=1)
