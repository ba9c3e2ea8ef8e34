"""Compiled programs for rows that join and leave: a prompt is read as one row, and taken into a batch of rows."""

import numpy as np

from bert4keras_rwkv.generation import rows
from bert4keras_rwkv.generation.loop import CHUNKS
from bert4keras_rwkv.generation.stepped import stepped
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.models.blocks import Blocks, worthwhile
from bert4keras_rwkv.ops.compile import compiled


class RowWriter:
    """Runs a backbone over rows. A *batch* is a value, (counts, state) of (B, ...) tensors: no program uses one up.

    forbidden: ids that are never drawn.
    """

    def __init__(self, backbone, forbidden=()):
        self._plan, self._blocks = rows.plan_for_all(forbidden), Blocks(backbone) if worthwhile(backbone) else None
        self._network, self._vocab_size = stepped(backbone, lambda: backbone.variables), backbone.config.vocab_size
        description = backbone.description(__name__)

        def program(function, variables=()):
            return compiled(function, variables, lambda: description.of(function.__name__, self._plan))

        self._take = program(_taken)
        if self._blocks is None:
            self._unpack = program(backbone.unpack)
            self._read, self._step = (program(one, backbone.variables) for one in (self._read_piece, self._step_rows))
        else:
            self._unpack, self._draw = self._blocks.unpack, program(self._draw_rows, self._blocks.behind)

    def begin(self, state):
        """The batch of one row that has read what an RWKVState of one row has, and drawn nothing."""
        return np.zeros((1, self._vocab_size), "float32"), self._unpack(state.wkv, state.shift)

    def read(self, batch, ids, size):
        """The batch of one row after some more ids, a list of at most `size`, one of `CHUNKS`."""
        piece = np.zeros((1, size), "int32")
        piece[0, : len(ids)] = ids
        present = np.arange(size)[None] < len(ids)
        counts, state = batch
        if self._blocks is None:
            return counts, self._read(piece, state, present)
        return counts, self._blocks.read(piece, state, present)[1]

    def taken(self, batch, one, index):
        """The batch with the rows `index`, ints, of `batch`; its size stands for the row of the batch `one`."""
        index = np.array(index, "int32")
        if self._blocks is None:
            return self._take(batch, one, index)
        (counts, state), (new_counts, new_state) = batch, one
        blocks = [self._take(*pair, index) for pair in zip(state, new_state, strict=True)]
        return self._take(counts, new_counts, index), blocks

    def step(self, batch, token, live, seeds, values):
        """Draw a token for each live row. Arguments as for `generation.rows.step`, in NumPy.

        Returns (token, finite), NumPy, and the next batch.
        """
        counts, state = batch
        if self._blocks is None:
            token, finite, counts, state = self._step(token, live, seeds, counts, state, values)
        else:
            x, state = self._blocks.read(token, state, live)
            token, finite, counts = self._draw(x, live, seeds, counts, values)
        return *map(ops.convert_to_numpy, (token, finite)), (counts, state)

    def _read_piece(self, ids, state, present):
        return self._network.hidden(ids, state, present)[1]

    def _step_rows(self, *arguments):
        return rows.step(self._network, self._plan, *arguments)

    def _draw_rows(self, x, *arguments):
        return rows.drawn(self._network, self._plan, x[:, 0], *arguments)


def sizes_up_to(most):
    """The sizes of batches that there are programs for: 1, 2, 4, ..., and `most`."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]


def compile_all(writer, sizes, state, report=lambda done, total: None):
    """Run each program once, in every shape that it will ever have. Returns the batch of one row that begins."""
    start = writer.begin(state)
    total, batch = len(CHUNKS) + len(sizes), start
    for done, size in enumerate(CHUNKS):
        report(done, total)
        first = writer.read(start, [0], size)
        writer.read(first, [0], size)
    for done, size in enumerate(sizes, len(CHUNKS)):
        report(done, total)
        before = len(batch[0])
        batch = writer.taken(batch, first, [before] * size)
        if before < size:
            writer.taken(batch, first, [0] * before)
        for one in (start, first):  # what comes from NumPy and what a program gave
            batch = writer.taken(batch, one, [0] * size)
        values = {name: np.ones(size, "int32" if name == "top_k" else "float32") for name in rows.NUMBERS}
        _, _, batch = writer.step(
            batch, np.zeros(size, "int32"), np.ones(size, bool), np.zeros((size, 2), "int32"), values
        )
        batch = writer.taken(batch, first, [0] * size)
    report(total, total)
    return start


def _taken(batch, one, index):
    """Leaf by leaf, rows of one nested structure of (B, ...) tensors with another's single row behind them."""
    return keras.tree.map_structure(lambda x, y: ops.take(ops.concatenate([x, y], axis=0), index, axis=0), batch, one)
