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
GROUP = 4  # prompts that are read at once
# (prompts, tokens of each) that there are programs for; the last ones take least time.
READS = (*((1, size) for size in PIECES), *((GROUP, size) for size in PIECES[1:]))
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

        self._take, self._join, self._split = map(program, (_taken, _joined, _split))
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

    def read(self, batches, several, form):
        """Batches of one row, each after some more ids, a list for each. form: one of `READS` with room for them."""
        rows, size = form
        piece, length = np.zeros(form, "int32"), np.zeros((rows, 1), "int32")
        for place, ids in enumerate(several):
            piece[place, : len(ids)], length[place] = ids, len(ids)
        present = np.arange(size)[None] < length
        states = [batch.state for batch in batches] + [batches[0].state] * (rows - len(batches))
        if self._blocks is None:
            states = (
                self._split(self._read(piece, self._join(states), present))
                if rows > 1
                else [self._read(piece, states[0], present)]
            )
        elif rows > 1:
            joined = [self._join(list(block)) for block in zip(*states, strict=True)]
            blocks = [self._split(block) for block in self._blocks.read(piece, joined, present)[1]]
            states = [list(state) for state in zip(*blocks, strict=True)]
        else:
            states = [self._blocks.read(piece, states[0], present)[1]]
        return [batch._replace(state=state) for batch, state in zip(batches, states, strict=False)]

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

    Returns the batch of one row that begins, and how many seconds each takes, by form of `READS` and size of batch.
    """
    start, seconds = writer.begin(state), {}
    total, batch = len(READS) + len(sizes), start
    (first,) = writer.read([start], [[0]], READS[0])
    for done, form in enumerate(READS):
        report(done, total)
        several = [[0]] * form[0]
        writer.read([start] * form[0], several, form)
        seconds[form] = _seconds(lambda f=form, s=several: writer.state(writer.read([first] * f[0], s, f)[0]))
    for done, size in enumerate(sizes, len(READS)):
        report(done, total)
        before = batch.size
        batch = writer.taken(batch, first, [before] * size)
        if before < size:
            writer.taken(batch, first, [0] * before)
        for one in (start, first, first._replace(rows=start.rows)):  # what comes from NumPy and what a program gave
            batch = writer.taken(batch, one, [0] * size)
        values = {name: np.ones(size, "int32" if name == "top_k" else "float32") for name in rows.NUMBERS}
        everything = np.ones((size, writer.vocab_size), bool)
        ask = np.ones(size, bool), np.zeros((size, 2), "int32"), values, everything
        batch = writer.step(batch, *ask).batch
        batch = writer.taken(batch, first, [0] * size)
        seconds[size] = _seconds(lambda batch=batch, ask=ask: ops.convert_to_numpy(writer.step(batch, *ask).finite))
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


def _joined(states):
    """Nested structures of (1, ...) tensors as one of (B, ...)."""
    return keras.tree.map_structure(lambda *leaves: ops.concatenate(leaves, axis=0), *states)


def _split(state):
    """A nested structure of (GROUP, ...) tensors as a list of `GROUP` of (1, ...)."""
    return [keras.tree.map_structure(lambda leaf, i=i: leaf[i : i + 1], state) for i in range(GROUP)]
