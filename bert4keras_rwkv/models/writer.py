"""Writing tokens: compiled programs over rows of ids, and the bookkeeping of rows that are written step by step.

Nothing here knows text but for one thing: a `TokenText` says how many of a row's tokens have been shown.
"""

from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.generation import loop
from bert4keras_rwkv.generation.stepped import stepped
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.models.blocks import Blocks, worthwhile
from bert4keras_rwkv.models.finite import not_finite_of
from bert4keras_rwkv.models.request import padded
from bert4keras_rwkv.ops.backend import runs_ahead
from bert4keras_rwkv.ops.compile import compiled
from bert4keras_rwkv.state import RWKVState


class Writer:
    """Runs a backbone to write tokens. Its programs are made when first wanted, one for each way of drawing.

    What it takes and returns between programs is the `Carry` of generation/loop.py. A carry is a value: no program
    uses one up, so an earlier one can be gone back to.
    """

    def __init__(self, backbone):
        self._network, self._description = backbone, backbone.description(__name__)
        self._blocks = Blocks(backbone) if worthwhile(backbone) else None
        self._stepped = stepped(backbone, lambda: backbone.variables)
        self._wholes, self._steps, self._draws = {}, {}, {}
        self._begins = {}
        self._start = compiled(loop.started, (), self._of("start"))
        self._pack = self._blocks.pack if self._blocks else compiled(backbone.pack, (), self._of("pack"))
        self._choose = compiled(_chosen)

    @property
    def runs_ahead(self):
        """Whether `step` returns before it is computed."""
        placement = self._network.placement
        return runs_ahead() and (placement is None or not placement.waits)

    def write(self, request):
        """Write until every row has ended, as one program where that is quicker than one a token.

        Returns the answers, lists of int, and the RWKVState that has consumed all but the last token of each row.
        """
        if self._blocks is None:
            chunks = loop.chunks_for(request.length)
            program = self._program(self._wholes, self._whole_row, request, chunks)
            r, state = request, request.state
            values, ends = r.sampling.values(len(r.ids)), r.end_row()
            *arrays, wkv, shift = program(r.ids, r.length, r.limit, state.wkv, state.shift, r.seeds, values, ends)
        else:
            steps = Steps(self, request)
            carry = self.begin(request)
            while ops.convert_to_numpy(carry.live).any():
                carry = steps.after(carry)
            arrays, (wkv, shift) = (carry.ids, carry.position, carry.finite), self._pack(carry.state)
        ids, count, finite = map(ops.convert_to_numpy, arrays)
        if not finite.all():
            row = int(np.argmin(finite))
            raise self.not_finite(request, row, ids[row, r.length[row] : count[row]])
        answers = [row[start:end].tolist() for row, start, end in zip(ids, request.length, count, strict=True)]
        return answers, RWKVState(wkv, shift, self._network.config.model)

    def begin(self, request):
        """Read the prompts. Returns the carry before the first step."""
        r, state = request, request.state
        if self._blocks is None:
            chunks = loop.chunks_for(r.length)
            if chunks not in self._begins:
                self._begins[chunks] = self._compiled(self._begin_row(chunks), "begin", chunks)
            return self._begins[chunks](r.ids, r.length, r.limit, state.wkv, state.shift, r.seeds)
        consumed = np.maximum(r.length - 1, 0)
        read = self._blocks.prefill(r.ids, consumed, self._blocks.unpack(state.wkv, state.shift))
        return self._start(r.ids, r.length, r.limit, None, r.seeds)._replace(state=read)

    def step(self, request, carry):
        """Write one token in each live row. Returns the next carry."""
        values, ends = request.sampling.values(len(request.ids)), request.end_row()
        if self._blocks is None:
            return self._program(self._steps, self._step_row, request)(carry, values, ends)
        x, state = self._blocks.read(carry.token, carry.state, carry.live)
        program = self._program(self._steps, self._written_row, request)
        return program(carry._replace(state=None), x, values, ends)._replace(state=state)

    def draw(self, logits, prompts, answers, seeds, sampling):
        """The next id of each row, (B,) NumPy int32. logits: (B, V). prompts, answers: rows of ids, all that was read
        and written so far. seeds: (B, 2) int32.
        """
        start, position = (np.array([len(row) for row in rows], "int32") for rows in (prompts, answers))
        position += start
        ids = padded([np.concatenate(row) for row in zip(prompts, answers, strict=True)], max(1, int(position.max())))
        plan = sampling.plan()
        if plan not in self._draws:
            self._draws[plan] = compiled(_drawing(plan))
        drawn = self._draws[plan](logits, ids, start, position, seeds, sampling.values(len(ids)))
        return ops.convert_to_numpy(drawn)

    def state(self, carry):
        """The RWKVState in a carry: it has consumed all tokens of each row but the last."""
        return RWKVState(*self._pack(carry.state), self._network.config.model)

    def chosen(self, rows, these, others):
        """The carry with the given rows, (B,) bool, of `these`, and the rest of `others`."""
        if self._blocks is None:
            return self._choose(rows, these, others)
        state = [self._choose(rows, *pair) for pair in zip(these.state, others.state, strict=True)]
        return self._choose(rows, these._replace(state=None), others._replace(state=None))._replace(state=state)

    def not_finite(self, request, row, drawn):
        """The error for a row whose logits are no numbers after the tokens `drawn`. It reads the row once more."""
        ids = np.concatenate([request.ids[row, : request.length[row]], drawn]).astype("int32")
        layer = not_finite_of(self._network, ids[None], request.state[row].wkv, request.state[row].shift)
        return ValueError(
            f"No token can be drawn: after {len(ids)} tokens the logits of row {row} are not finite; the first that is "
            f"not is {layer or 'the logits'}. Damaged weights do this, and numbers too large for float16: then use "
            "dtype='float32', or --dtype float32, or in a strategy bf16 or fp32 instead of fp16."
        )

    def _program(self, programs, make, request, *more):
        key = (request.sampling.plan(), *more)
        if key not in programs:
            programs[key] = self._compiled(make(*key), make.__name__, *key)
        return programs[key]

    def _compiled(self, function, *parts):
        variables = self._network.variables if self._blocks is None else self._blocks.behind
        return compiled(function, variables, self._of(*parts))

    def _of(self, *parts):
        """What gives the `Description` of one program."""
        return lambda: self._description.of(*parts)

    def _begin_row(self, chunks):
        network = self._network

        def run(ids, length, limit, wkv, shift, seeds):
            return loop.begin(network, ids, length, limit, network.unpack(wkv, shift), seeds, chunks)

        return run

    def _whole_row(self, plan, chunks):
        network = self._network

        def run(ids, length, limit, wkv, shift, seeds, values, ends):
            state = network.unpack(wkv, shift)
            carry = loop.generate(self._stepped, plan, ends, ids, length, limit, state, seeds, values, chunks)
            return (carry.ids, carry.position, carry.finite, *network.pack(carry.state))

        return run

    def _step_row(self, plan):
        return lambda carry, values, ends: loop.advance(self._stepped, plan, ends, carry, values)

    def _written_row(self, plan):
        return lambda carry, x, values, ends: loop.written(self._network, plan, ends, carry, x[:, 0], values)


class Steps:
    """The steps of a request, one after another. While one is computed and looked at, the next has begun, where that
    costs nothing: the host needs as long to start a step as a small network to compute it. Weights that are changed in
    between count from the step after that.
    """

    def __init__(self, writer, request):
        self._step = lambda carry: writer.step(request, carry)
        self._ahead = writer.runs_ahead
        self._most = int((request.limit - request.length).max())  # steps until every row is full
        self._taken, self._begun = 0, None

    def after(self, carry):
        """The next carry. Calls follow each other: each is given what the last returned, if it is not `changed`."""
        new = self._step(carry) if self._begun is None else self._begun
        self._taken += 1
        self._begun = self._step(new) if self._ahead and self._taken < self._most else None
        return new

    def changed(self):
        """The next call of `after` is given another carry than the last one returned."""
        self._begun = None


class Progress(NamedTuple):
    """What was handed out: the carry that it is computed from, and how many tokens of each row, both (B,) ints."""

    carry: loop.Carry
    at: np.ndarray  # tokens that `carry` has written
    shown: np.ndarray  # tokens that were handed out, `at` or more


class Writing:
    """Rows that are written step by step, and may be left after any step.

    Where text is wanted, tokens that are drawn may wait to be shown, for the rest of a character, or until they are
    known not to begin a stop text. `state`, `tokens` and `seeds` are those of what `handed_out` was told last, exactly
    as if no more had been asked for. begun: the carry of the prompts, where they have been read.
    """

    def __init__(self, writer, request, begun=None):
        self._writer, self._request, self._texts = writer, request, request.texts()
        self._carry, self._steps = writer.begin(request) if begun is None else begun, Steps(writer, request)
        none = np.zeros(len(request.ids), int)
        self.drawn = [[] for _ in none]  # the tokens of each row
        self._live = ops.convert_to_numpy(self._carry.live)
        self._progress = Progress(self._carry, none, none)

    @property
    def live(self):
        """Whether any row goes on."""
        return bool(self._live.any())

    def step(self):
        """Write a token in each live row. Returns, for each row, what may be shown now: a str, or a list of ids."""
        self._carry = self._steps.after(self._carry)
        tokens, live, finite = (
            np.array(ops.convert_to_numpy(x)) for x in (self._carry.token, self._carry.live, self._carry.finite)
        )
        if not finite.all():
            row = int(np.argmin(finite))
            raise self._writer.not_finite(self._request, row, self.drawn[row])
        pieces = [[] if text is None else "" for text in self._texts]
        for row in np.flatnonzero(self._live):
            token, text = int(tokens[row]), self._texts[row]
            self.drawn[row].append(token)
            if text is None:
                pieces[row] = [token]
                continue
            pieces[row] = "" if token in self._request.ends else text.feed(token)
            live[row] = live[row] and not text.stopped
            if not live[row] and not text.stopped:
                pieces[row] += text.flush()
        self._live = live
        if not np.array_equal(live, ops.convert_to_numpy(self._carry.live)):
            self._carry = self._carry._replace(live=ops.convert_to_tensor(live))
            self._steps.changed()
        return pieces

    def whole(self):
        """Write to the end. Returns what each row shows, a str, or a list of ids where no text is wanted."""
        given = [[] if text is None else "" for text in self._texts]
        while self.live:
            given = [before + piece for before, piece in zip(given, self.step(), strict=True)]
            self.handed_out()
        self.finished()
        self.handed_out()
        return given

    @property
    def shown(self):
        """How many tokens of each row the steps have returned, (B,) ints; those that wait do not count."""
        pairs = zip(self._texts, self.drawn, strict=True)
        return np.array([len(tokens) if text is None else text.shown for text, tokens in pairs])

    def handed_out(self, count=None):
        """What the steps returned so far, or `count` tokens of it, has reached its reader."""
        drawn = np.array([len(tokens) for tokens in self.drawn])
        shown = self.shown if count is None else np.minimum(self.shown, count)
        whole = shown == drawn
        carry, at, _ = self._progress
        if whole.all():
            carry = self._carry
        elif (whole & (at < drawn)).any():
            carry = self._writer.chosen(whole, self._carry, carry)
        self._progress = Progress(carry, np.where(whole, drawn, at), shown)

    def finished(self):
        """All rows have ended, and all that they show is returned: their end tokens, which show nothing, count too."""
        for row, text in enumerate(self._texts):
            if text is not None and not text.stopped:
                text.shown = len(self.drawn[row])

    @property
    def tokens(self):
        """The tokens of each row that were handed out."""
        return [tokens[:count] for tokens, count in zip(self.drawn, self._progress.shown, strict=True)]

    @property
    def carry(self):
        """The carry of what was handed out."""
        carry, at, shown = self._progress
        missing = int((shown - at).max())
        if missing:  # a step is a function of the carry: those that waited are taken again
            limit = carry.position + ops.convert_to_tensor((shown - at).astype("int32"))
            carry = carry._replace(limit=limit, live=carry.position < limit)
            for _ in range(missing):
                carry = self._writer.step(self._request, carry)
            self._progress = Progress(carry, shown, shown)
        return carry

    @property
    def state(self):
        """The RWKVState that has consumed all that was handed out but each row's last token."""
        return self._writer.state(self.carry)

    @property
    def seeds(self):
        """(B, 2) int32: how the draws go on."""
        seeds = self._request.seeds.copy()
        seeds[:, 1] += self._progress.shown.astype("int32")
        return seeds


def _drawing(plan):
    def draw(logits, ids, start, position, seeds, values):
        so_far = loop.Carry(ids, None, position, start, None, None, seeds, None, None)
        return loop.next_token(ops.cast(logits, "float32"), plan, so_far, values)

    return draw


def _chosen(rows, these, others):
    """Leaf by leaf, rows of one nested structure of (B, ...) tensors, or None, or of another."""

    def one(this, other):
        return None if this is None else ops.where(ops.reshape(rows, (-1, *[1] * (len(this.shape) - 1))), this, other)

    return keras.tree.map_structure(one, these, others)
