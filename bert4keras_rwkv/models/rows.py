"""Compiled programs for rows that join and leave: a prompt is read as one row, and taken into a batch of rows."""

import time
from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.generation import rows
from bert4keras_rwkv.generation.loop import CHUNKS
from bert4keras_rwkv.generation.rows import Rows
from bert4keras_rwkv.generation.stepped import stepped
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.models.blocks import Blocks, worthwhile
from bert4keras_rwkv.ops.backend import runs_ahead
from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.state import RWKVState

SHORT = 8  # tokens: the shortest piece of a prompt, read where nothing may wait long
PIECES = (*CHUNKS, SHORT)
TIMES = 3  # that a program is timed


class Batch(NamedTuple):
    """Rows, and the network's state of each, as tensors. It is a value: no program uses one up."""

    rows: Rows
    state: object

    @property
    def size(self):
        """How many rows."""
        return len(self.rows.token)


class Drawn(NamedTuple):
    """What a step gives, tensors that may still be computed: see `generation.rows.step`."""

    finite: object
    logits: object
    batch: Batch


class RowWriter:
    """Runs a backbone over rows. forbidden: ids that are never drawn."""

    def __init__(self, backbone, forbidden=()):
        self._backbone, self._plan = backbone, rows.plan_for_all(forbidden)
        self._blocks = Blocks(backbone) if worthwhile(backbone) else None
        self._network, self.vocab_size = stepped(backbone, lambda: backbone.variables), backbone.config.vocab_size
        description = backbone.description(__name__)

        def program(function, variables=()):
            return compiled(function, variables, lambda: description.of(function.__name__, self._plan))

        self._take = program(_taken)
        if self._blocks is None:
            self._unpack, self._pack = program(backbone.unpack), program(backbone.pack)
            self._read, self._step = (program(one, backbone.variables) for one in (self._read_piece, self._step_rows))
        else:
            self._unpack, self._pack = self._blocks.unpack, self._blocks.pack
            self._draw = program(self._draw_rows, self._blocks.behind)

    @property
    def runs_ahead(self):
        """Whether `step` returns before it is computed."""
        placement = self._backbone.placement
        return runs_ahead() and (placement is None or not placement.waits)

    def begin(self, state):
        """The batch of one row that has read what an RWKVState of one row has, and drawn nothing."""
        return Batch(Rows.one(self.vocab_size), self._unpack(state.wkv, state.shift))

    def state(self, batch):
        """The RWKVState of a batch, NumPy."""
        return RWKVState(*self._pack(batch.state), self._backbone.config.model).numpy()

    def read(self, batch, ids, size):
        """The batch of one row after some more ids, a list of at most `size`, one of `PIECES`."""
        piece = np.zeros((1, size), "int32")
        piece[0, : len(ids)] = ids
        present = np.arange(size)[None] < len(ids)
        if self._blocks is None:
            return batch._replace(state=self._read(piece, batch.state, present))
        return batch._replace(state=self._blocks.read(piece, batch.state, present)[1])

    def taken(self, batch, one, index):
        """The batch with the rows `index`, ints, of `batch`; its size stands for the row of the batch `one`."""
        index = np.array(index, "int32")
        if self._blocks is None:
            return Batch(*self._take(tuple(batch), tuple(one), index))
        blocks = [self._take(*pair, index) for pair in zip(batch.state, one.state, strict=True)]
        return Batch(self._take(batch.rows, one.rows, index), blocks)

    def step(self, batch, live, seeds, values, allowed):
        """Draw a token for each live row. Arguments as for `generation.rows.step`, in NumPy. Returns a `Drawn`."""
        if self._blocks is None:
            finite, logits, new, state = self._step(batch.rows, live, seeds, batch.state, values, allowed)
        else:
            x, state = self._blocks.read(batch.rows.token, batch.state, live)
            finite, logits, new = self._draw(x, batch.rows, live, seeds, values, allowed)
        return Drawn(finite, logits, Batch(new, state))

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
    """Run each program in every shape that it will ever have.

    Returns the batch of one row that begins, and how many seconds each takes: {('read', size): ..., ('step', size):
    ...}.
    """
    start, seconds = writer.begin(state), {}
    total, batch = len(PIECES) + len(sizes), start
    for done, size in enumerate(PIECES):
        report(done, total)
        first = writer.read(start, [0], size)
        seconds["read", size] = _seconds(lambda first=first, size=size: writer.state(writer.read(first, [0], size)))
    for done, size in enumerate(sizes, len(PIECES)):
        report(done, total)
        before = batch.size
        batch = writer.taken(batch, first, [before] * size)
        if before < size:
            writer.taken(batch, first, [0] * before)
        for one in (start, first, first._replace(rows=start.rows)):  # what comes from NumPy and what a program gave
            batch = writer.taken(batch, one, [0] * size)
        values = {name: np.ones(size, "int32" if name == "top_k" else "float32") for name in rows.NUMBERS}
        everything = np.full((size, rows.words(writer.vocab_size)), -1, "int32")
        ask = np.ones(size, bool), np.zeros((size, 2), "int32"), values, everything
        batch = writer.step(batch, *ask).batch
        batch = writer.taken(batch, first, [0] * size)
        seconds["step", size] = _seconds(
            lambda batch=batch, ask=ask: ops.convert_to_numpy(writer.step(batch, *ask).finite)
        )
        first = writer.taken(batch, first, [0])
        writer.state(first)
    report(total, total)
    return start, seconds


def _seconds(run):
    """How long a call takes that has been made before: the shortest of a few, for the machine may be busy."""
    run()
    seconds = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _taken(batch, one, index):
    """Leaf by leaf, rows of one nested structure of (B, ...) tensors with another's single row behind them."""
    return keras.tree.map_structure(lambda x, y: ops.take(ops.concatenate([x, y], axis=0), index, axis=0), batch, one)
