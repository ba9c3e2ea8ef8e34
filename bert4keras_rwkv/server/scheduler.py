"""Continuous batching: texts of many who ask are rows of one batch, which they join and leave between two tokens.

One thread computes. Between two steps it drops rows whose reader has gone, reads a piece of some prompts, and takes
rows whose prompt is read into the batch. So nobody who writes waits longer than two steps take. While a step is looked
at, the next is computed, where the backend does so by itself and what may come next does not depend on what came.
"""

import dataclasses
import logging
import threading
import time
from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.generation.rows import NUMBERS, unpacked
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models.request import end_ids
from bert4keras_rwkv.models.rows import Drawn, RowWriter, compile_all, sizes_up_to
from bert4keras_rwkv.server.asked import Done, Failed, Ticket
from bert4keras_rwkv.server.keeping import Keeper
from bert4keras_rwkv.server.reading import Reader, Reading
from bert4keras_rwkv.server.row import Row
from bert4keras_rwkv.server.turns import Turns
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer

IDLE = Sampling(temperature=0).values(1)
LONGEST_WAIT = 60  # seconds that anybody is told to wait

logger = logging.getLogger("bert4keras_rwkv")


class FullError(Exception):
    """As many wait as may. seconds: after which there may be room."""

    def __init__(self, message, seconds):
        super().__init__(message)
        self.seconds = seconds


class ClosedError(Exception):
    """Nothing more is begun."""


@dataclasses.dataclass
class Figures:
    """What was done since the start. read: tokens of prompts, of which `cached` were not computed. written: tokens."""

    steps: int = 0
    read: int = 0
    cached: int = 0
    written: int = 0
    answers: int = 0
    failed: int = 0


class Step(NamedTuple):
    """A step that has begun, and whose rows it draws for, None for a row that is not."""

    rows: list
    drawn: Drawn


class Scheduler:
    """Writes for many at once with one model.

        scheduler = Scheduler(rwkv)
        scheduler.start()
        ticket = scheduler.submit(asked, print)  # events, in the scheduler's thread
        scheduler.stop()

    max_batch: rows at most. queue: answers that may wait beside them. state: an RWKVState of one row in which every
    text begins, None: as the model says. cache: a `StateCache`, or None.
    """

    def __init__(self, rwkv, max_batch=16, queue=64, state=None, cache=None):
        self.tokenizer, self.vocab_size = need_tokenizer(rwkv.tokenizer), rwkv.config.vocab_size
        self.ends = frozenset(end_ids("auto", self.tokenizer, self.vocab_size))
        self._writer = RowWriter(rwkv.backbone, self.tokenizer.without_text(self.vocab_size))
        self._sizes, self.queue = sizes_up_to(max_batch), queue
        self._first, self._cache = rwkv.state_for(state, 1), cache
        self._lock = threading.Condition()
        self._waiting = Turns()  # tickets
        self._ready = Turns()  # rows whose prompt is read
        self._readings = []  # in the order in which they came
        self._pending = None  # a `Step` that has not been looked at
        self._rows, self._closed, self._thread, self._answer_seconds = [None], False, None, 0.0
        self._everything = {}  # rows -> that each of them may draw any id
        self.figures = Figures()

    def start(self, report=lambda done, total: None):
        """Compile all programs, telling `report(done, total)`, and begin to serve."""
        self._start, self._seconds = compile_all(self._writer, self._sizes, self._first, report)
        shapes = {size: (size, self.vocab_size) for size in self._sizes}
        self._everything = {size: ops.ones(shape, "bool") for size, shape in shapes.items()}
        self._batch = self._start
        self._keeper = Keeper(self._writer, self._start, self._cache)
        self._reader = Reader(self._writer, self._start, self._seconds, self._keeper, self.figures)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, asked, deliver):
        """Have something written. deliver: called with events, in the order of each answer, by the scheduler's thread.

        Returns a `Ticket`. Raises FullError or ClosedError.
        """
        ticket = Ticket(asked, deliver, self._wake)
        with self._lock:
            if self._closed:
                raise ClosedError("The server is stopping.")
            free = self._sizes[-1] - self.running
            if self.waiting + asked.answers > self.queue + max(free, 0):
                message = f"{self.waiting} answers wait already, and at most {self.queue} may."
                raise FullError(message, self._seconds_until_room())
            self._waiting.add(asked.key, ticket)
            self._lock.notify()
        return ticket

    def stop(self, limit=30.0):
        """Begin nothing more, finish what was asked for within `limit` seconds, and tell the rest that it fails."""
        with self._lock:
            self._closed, self._until = True, time.monotonic() + limit
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()

    @property
    def ready(self):
        """Whether the programs are compiled, its thread lives, and it is not stopping."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    @property
    def most(self):
        """How many answers there can be at once, written and waiting."""
        return self._sizes[-1] + self.queue

    @property
    def batch_size(self):
        """How many rows are computed at each step."""
        return len(self._rows)

    @property
    def running(self):
        """How many answers are being written."""
        return sum(row is not None for row in self._rows)

    @property
    def waiting(self):
        """How many answers have not begun."""
        with self._lock:
            reading = sum(one.answers for one in self._readings)
            waiting = sum(ticket.asked.answers for ticket in self._waiting)
            return len(self._ready) + reading + waiting

    def _seconds_until_room(self):
        """How long it takes until the first of those who wait begins, as answers went so far: whole seconds."""
        return int(min(max(self._answer_seconds / self._sizes[-1], 1), LONGEST_WAIT))

    def _wake(self):
        with self._lock:
            self._lock.notify()

    def _run(self):
        while self._wait():
            try:
                self._drop_gone()
                self._read_pieces()
                self._place()
                self._step()
            except Exception as error:  # whatever a backend raises, those who come later are served
                self._give_up(error)
        for ticket, answers in self._left():
            self._fail(((ticket, answer) for answer in answers), "The server has stopped.")
        self._keeper.close()

    def _wait(self):
        """Wait for something to do. Returns whether to go on."""
        if not self.running:
            self._keeper.keep_now()
        with self._lock:
            while not (busy := self.running or self.waiting) and not self._closed:
                self._lock.wait()
            return busy and not (self._closed and time.monotonic() > self._until)

    def _left(self):
        """(ticket, numbers of answers) of all that has not ended."""
        with self._lock:
            self._closed = True
            rows = [row for row in [*self._rows, *self._ready] if row is not None]
            tickets = [*self._waiting.remove(), *(one.ticket for one in self._readings)]
        return [(row.ticket, [row.answer]) for row in rows] + [(one, range(one.asked.answers)) for one in tickets]

    def _drop_gone(self):
        """Let go of what nobody wants any more, or whose time is over."""
        with self._lock:
            tickets = self._waiting.remove(_unwanted)
            tickets += [one.ticket for one in self._readings if _unwanted(one.ticket)]
            self._readings = [one for one in self._readings if not _unwanted(one.ticket)]
            gone = self._ready.remove(lambda row: _unwanted(row.ticket))
        answers = [(ticket, answer) for ticket in tickets for answer in range(ticket.asked.answers)]
        gone += [row for row in self._rows if row is not None and _unwanted(row.ticket)]
        answers += [(row.ticket, row.answer) for row in gone]
        for row in gone:
            row.ended = True
        self._rows = [None if row is None or row.ended else row for row in self._rows]
        for ticket, answer in answers:
            if not ticket.gone:
                message = f"The answer was not done within {ticket.asked.seconds:g} seconds."
                self._tell(ticket, Failed(answer, message, 504))

    def _read_pieces(self):
        """Read a piece of each of some prompts for which there will be rows."""
        self._take_up()
        for reading in [one for one in self._readings if one.batch is None]:
            self._guarded([reading], lambda reading=reading: self._reader.begin(reading))
        patience = 2 * self._seconds[self._sizes[-1]] - self._seconds[len(self._rows)]
        chosen, form = self._reader.next(self._readings, patience if self.running else None)
        if chosen:
            self._guarded(chosen, lambda: self._reader.read(chosen, form))
        for reading in [one for one in self._readings if not one.left]:
            self._guarded([reading], lambda reading=reading: self._read_through(reading))

    def _guarded(self, readings, do):
        """Do something for prompts, which fail with it, whatever a backend raises; the others go on."""
        try:
            do()
        except Exception as error:
            with self._lock:
                self._readings = [one for one in self._readings if one not in readings]
            self._failed([(one.ticket, answer) for one in readings for answer in range(one.answers)], error)

    def _read_through(self, reading):
        """The rows of a prompt that is read."""
        facts = reading.cached, self.tokenizer, self.ends, self.vocab_size
        rows = [Row(reading.ticket, answer, reading.batch, *facts) for answer in range(reading.answers)]
        with self._lock:
            self._readings.remove(reading)
            for row in rows:
                self._ready.add(row.ticket.asked.key, row)

    def _take_up(self):
        """Begin to read prompts, as many as there are rows for: many answers to one do not keep another's waiting."""
        with self._lock:
            prompts = len({row.ticket for row in self._ready}) + len(self._readings)
            for _ in range(self._sizes[-1] - self.running - prompts):
                ticket = self._waiting.take()
                if ticket is None:
                    return
                self._readings.append(Reading(ticket))

    def _place(self):
        """Take rows that are ready into the batch, which grows for them, and shrinks when they are few."""
        while self._ready and self.running < self._sizes[-1]:
            if None not in self._rows:
                self._resize(self._sizes[self._sizes.index(len(self._rows)) + 1])
            free, size = self._rows.index(None), len(self._rows)
            with self._lock:  # it is counted once, by whoever counts
                row = self._rows[free] = self._ready.take()
            self._batch = self._writer.taken(self._batch, row.read, [*range(free), size, *range(free + 1, size)])
        smaller = self._sizes.index(len(self._rows)) - 1
        if smaller >= 0 and self.running <= self._sizes[smaller] and not self.waiting:
            self._resize(self._sizes[smaller])

    def _resize(self, size):
        """Move the rows into a batch of another size."""
        kept = [i for i, row in enumerate(self._rows) if row is not None]
        index = kept + [len(self._rows)] * (size - len(kept))  # of rows that begin
        self._batch = self._writer.taken(self._batch, self._start, index)
        self._rows = [self._rows[i] for i in kept] + [None] * (size - len(kept))

    def _step(self):
        """Begin a step, and hand out what the one before has drawn."""
        if not self._writer.runs_ahead or any(row is not None and row.bound for row in self._rows):
            self._finish(self._pending)
            self._pending = None
            self._finish(self._begin())
            self._keeper.keep_now()
            return
        before, self._pending = self._pending, self._begin()
        self._finish(before)
        if before is not None:  # nobody's first token waits for it
            self._keeper.keep_now()

    def _begin(self):
        """A step for each row that wants a token, None if none does."""
        allowed = self._allowed()
        rows = [row if row is not None and row.wants_step else None for row in self._rows]
        if not any(row is not None for row in rows):
            return None
        live = np.array([row is not None for row in rows])
        seeds = np.array([(0, 0) if row is None else row.next_seeds() for row in rows], "int32")
        each = [IDLE if row is None else row.values for row in rows]
        values = {name: np.concatenate([one[name] for one in each]) for name in NUMBERS}
        drawn = self._writer.step(self._batch, live, seeds, values, allowed)
        self._batch = drawn.batch
        self.figures.steps += 1
        return Step(rows, drawn)

    def _allowed(self):
        """What each row may draw, (B, V) bool."""
        masks = [None] * len(self._rows)
        for place, row in enumerate(self._rows):
            if row is not None and row.wants_step:
                try:
                    masks[place] = row.allowed()
                except ValueError as error:
                    self._end(row, [Failed(row.answer, str(error), 400)])
        if all(mask is None for mask in masks):
            return self._everything[len(masks)]
        allowed = np.ones((len(masks), self.vocab_size), bool)
        for place, mask in enumerate(masks):
            if mask is not None:
                allowed[place] = unpacked(mask, self.vocab_size)
        return allowed

    def _finish(self, step):
        """Hand out what a step, if there is one, has drawn."""
        if step is None:
            return
        token, finite = map(ops.convert_to_numpy, (step.drawn.batch.rows.token, step.drawn.finite))
        for place, row in enumerate(step.rows):
            if row is not None and not row.ended:
                self._take(row, int(token[place]), bool(finite[place]), step, place)

    def _take(self, row, token, finite, step, place):
        """What a row has drawn."""
        asked = row.ticket.asked
        if not finite:
            count = len(asked.ids) + len(row.drawn)
            message = f"No token can be drawn: after {count} tokens the logits are not finite."
            self._end(row, [Failed(row.answer, message)])
            return
        self.figures.written += 1
        logits = None if asked.logprobs is None else ops.convert_to_numpy(step.drawn.logits)[place]
        try:
            events = row.take(token, logits, step.drawn.batch, place)
        except ValueError as error:
            self._end(row, [Failed(row.answer, str(error), 400)])
            return
        if row.ended:
            self._end(row, events)
        else:
            for event in events:
                self._tell(row.ticket, event)

    def _end(self, row, events):
        """A row has ended: it is free, its state is kept, and whoever asked is told."""
        row.ended = True
        if row in self._rows:
            self._rows[self._rows.index(row)] = None
        *before, last = events
        if isinstance(last, Done):
            last = dataclasses.replace(last, place=self._keeper.behind(row))
            self.figures.answers += 1
            spent = time.monotonic() - row.ticket.begun
            self._answer_seconds += (spent - self._answer_seconds) / min(self.figures.answers, 20)
        for event in (*before, last):
            self._tell(row.ticket, event)

    def _give_up(self, error):
        """Something has failed that concerns all rows: they have."""
        with self._lock:
            rows = [row for row in [*self._rows, *self._ready.remove()] if row is not None]
        self._rows, self._batch, self._pending = [None], self._start, None
        for row in rows:
            row.ended = True
        self._failed([(row.ticket, row.answer) for row in rows], error)

    def _failed(self, answers, error):
        logger.error("Answers failed: %s", error, exc_info=error)
        self._fail(answers, "The server failed to compute this answer.")

    def _fail(self, answers, message):
        for ticket, answer in answers:
            self._tell(ticket, Failed(answer, message))

    def _tell(self, ticket, event):
        """Hand over an event. Whoever cannot take it has gone; the others go on."""
        if ticket.gone:
            return
        self.figures.failed += isinstance(event, Failed)
        try:
            ticket.deliver(event)
        except Exception as error:
            logger.error("An answer could not be handed over: %s", error, exc_info=error)
            ticket.gone = True


def _unwanted(ticket):
    """Whether nobody wants it any more, or its time is over."""
    return ticket.gone or ticket.late
