"""Continuous batching: texts of many who ask are rows of one batch, which they join and leave between two tokens.

One thread computes. Between two steps it drops rows whose reader has gone, reads one piece of one prompt, and takes
rows whose prompt is read into the batch. So nobody who writes waits longer than for one piece, and nobody who waits is
overtaken.
"""

import collections
import dataclasses
import logging
import threading
import time

import numpy as np

from bert4keras_rwkv.generation.loop import CHUNKS
from bert4keras_rwkv.generation.rows import NUMBERS
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.request import end_ids
from bert4keras_rwkv.models.rows import RowWriter, compile_all, sizes_up_to
from bert4keras_rwkv.server.counts import Counts
from bert4keras_rwkv.tokenizers.prompts import need_tokenizer
from bert4keras_rwkv.tokenizers.text_stream import TokenText

IDLE = Sampling(temperature=0).values(1)

logger = logging.getLogger("bert4keras_rwkv")


class FullError(Exception):
    """As many wait as may."""


class ClosedError(Exception):
    """Nothing more is begun."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be written: answers to one prompt.

    ids: at least one. seeds: (n, 2) int32 (models/request.seeds), for n answers. limit: tokens of an answer at most.
    sampling: a `Sampling` of the fields in `generation.rows.NUMBERS`. stops: texts that end an answer.
    """

    ids: tuple[int, ...]
    seeds: np.ndarray
    limit: int
    sampling: Sampling
    stops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text of one of the answers."""

    answer: int
    text: str


@dataclasses.dataclass(frozen=True)
class Done:
    """An answer has ended. reason: 'stop' or 'length'. tokens: how many were drawn."""

    answer: int
    reason: str
    tokens: int


@dataclasses.dataclass(frozen=True)
class Failed:
    """An answer cannot go on."""

    answer: int
    message: str


class Ticket:
    """One `Asked` on its way. `leave` it when nobody wants its answers any more."""

    def __init__(self, asked, deliver, wake):
        self.asked, self.deliver, self._wake = asked, deliver, wake
        self.gone = False

    def leave(self):
        """Write nothing more: its rows are free before the next token."""
        self.gone = True
        self._wake()


class Row:
    """One answer that is being written. batch: of its read prompt, one row."""

    def __init__(self, ticket, answer, batch, tokenizer):
        asked = ticket.asked
        self.ticket, self.answer, self.batch = ticket, answer, batch
        self.token, self.seeds, self.drawn = asked.ids[-1], asked.seeds[answer].copy(), 0
        self.values = asked.sampling.values(1)
        self._text = TokenText(tokenizer, asked.stops)

    def take(self, token, ends):
        """The next token was drawn. Returns whether the answer has ended."""
        self.token, self.drawn = token, self.drawn + 1
        self.seeds[1] += 1
        piece = "" if token in ends else self._text.feed(token)
        stopped = token in ends or self._text.stopped
        ended = stopped or self.drawn >= self.ticket.asked.limit
        if ended:
            piece += self._text.flush()
        if piece:
            self.tell(Piece(self.answer, piece))
        if ended:
            self.tell(Done(self.answer, "stop" if stopped else "length", self.drawn))
        return ended

    def tell(self, event):
        tell(self.ticket, event)


class Scheduler:
    """Writes for many at once with one model.

        scheduler = Scheduler(rwkv)
        scheduler.start()
        ticket = scheduler.submit(asked, print)  # events, in the scheduler's thread
        scheduler.stop()

    max_batch: rows at most. queue: answers that may wait beside them. state: an RWKVState of one row in which every
    text begins, None: as the model says.
    """

    def __init__(self, rwkv, max_batch=16, queue=64, state=None):
        self.tokenizer = need_tokenizer(rwkv.tokenizer)
        self._ends = frozenset(end_ids("auto", self.tokenizer, rwkv.config.vocab_size))
        self._writer = RowWriter(rwkv.backbone, self.tokenizer.without_text(rwkv.config.vocab_size))
        self.sizes, self.queue = sizes_up_to(max_batch), queue
        self._first = rwkv.state_for(state, 1)
        self._lock = threading.Condition()
        self._waiting = collections.deque()  # tickets, in the order in which they came
        self._ready = collections.deque()  # rows whose prompt is read
        self._reading = None  # (ticket, batch of one row, ids read)
        self._rows, self._closed, self._thread = [None], False, None
        self.counts = Counts()

    def start(self, report=lambda done, total: None):
        """Compile all programs, telling `report(done, total)`, and begin to serve."""
        self._start = compile_all(self._writer, self.sizes, self._first, report)
        self._batch = self._start
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
            free = self.sizes[-1] - self.running
            if self.waiting + len(asked.seeds) > self.queue + max(free, 0):
                raise FullError(f"{self.waiting} answers wait already, and at most {self.queue} may.")
            self._waiting.append(ticket)
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
    def most(self):
        """How many answers there can be at once, written and waiting."""
        return self.sizes[-1] + self.queue

    @property
    def accepts(self):
        """Whether the programs are compiled, its thread lives, and it is not stopping."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    @property
    def running(self):
        """How many answers are being written."""
        return sum(row is not None for row in self._rows)

    @property
    def waiting(self):
        """How many answers have not begun."""
        with self._lock:
            reading = [] if self._reading is None else [self._reading[0]]
            return len(self._ready) + sum(len(ticket.asked.seeds) for ticket in [*reading, *self._waiting])

    def _wake(self):
        with self._lock:
            self._lock.notify()

    def _run(self):
        while self._wait():
            self._drop_gone()
            self._read_piece()
            self._place()
            if self.running:
                self._step()
        for ticket, answers in self._left():
            for answer in answers:
                tell(ticket, Failed(answer, "The server has stopped."))

    def _wait(self):
        """Wait for something to do. Returns whether to go on."""
        with self._lock:
            while not (busy := self.running or self.waiting) and not self._closed:
                self._lock.wait()
            return busy and not (self._closed and time.monotonic() > self._until)

    def _left(self):
        """(ticket, numbers of answers) of all that has not ended."""
        with self._lock:
            self._closed = True
            rows = [row for row in [*self._rows, *self._ready] if row is not None]
            tickets = [*self._waiting, *([] if self._reading is None else [self._reading[0]])]
            self._waiting.clear()
        return [(row.ticket, [row.answer]) for row in rows] + [(one, range(len(one.asked.seeds))) for one in tickets]

    def _drop_gone(self):
        with self._lock:
            self._waiting = collections.deque(ticket for ticket in self._waiting if not ticket.gone)
        self._ready = collections.deque(row for row in self._ready if not row.ticket.gone)
        self._rows = [None if row is None or row.ticket.gone else row for row in self._rows]
        if self._reading is not None and self._reading[0].gone:
            self._reading = None

    def _read_piece(self):
        """Read a piece of the first prompt that waits, if there will be a row for it."""
        if self._reading is None:
            if self._ready or self.running >= self.sizes[-1]:
                return
            with self._lock:
                if not self._waiting:
                    return
                self._reading = self._waiting.popleft(), self._start, 0
        ticket, batch, at = self._reading
        left = ticket.asked.ids[at:-1]
        size = next((size for size in CHUNKS if size <= len(left) and not self.running), CHUNKS[-1])
        if left:
            try:
                batch = self._writer.read(batch, left[:size], size)
            except Exception as error:  # whatever a backend raises, the others go on
                self._reading = None
                self._fail(((ticket, answer) for answer in range(len(ticket.asked.seeds))), error)
                return
            self.counts.read += len(left[:size])
        with self._lock:
            self._reading = (ticket, batch, at + size) if len(left) > size else None
            if self._reading is None:
                answers = range(len(ticket.asked.seeds))
                self._ready.extend(Row(ticket, answer, batch, self.tokenizer) for answer in answers)

    def _place(self):
        """Take rows that are ready into the batch, which grows for them, and shrinks when they are few."""
        while self._ready and self.running < self.sizes[-1]:
            if None not in self._rows:
                self._resize(self.sizes[self.sizes.index(len(self._rows)) + 1])
            free, size = self._rows.index(None), len(self._rows)
            with self._lock:  # it is counted once, by whoever counts
                row = self._rows[free] = self._ready.popleft()
            self._batch = self._writer.taken(self._batch, row.batch, [*range(free), size, *range(free + 1, size)])
            row.batch = None
        smaller = self.sizes.index(len(self._rows)) - 1
        if smaller >= 0 and self.running <= self.sizes[smaller] and not self.waiting:
            self._resize(self.sizes[smaller])

    def _resize(self, size):
        """Move the rows into a batch of another size."""
        kept = [i for i, row in enumerate(self._rows) if row is not None]
        index = kept + [len(self._rows)] * (size - len(kept))  # of rows that begin
        self._batch = self._writer.taken(self._batch, self._start, index)
        self._rows = [self._rows[i] for i in kept] + [None] * (size - len(kept))

    def _step(self):
        """Draw a token for each row."""
        rows = self._rows
        live = np.array([row is not None for row in rows])
        token = np.array([row.token if row else 0 for row in rows], "int32")
        seeds = np.array([row.seeds if row else (0, 0) for row in rows], "int32")
        each = [row.values if row else IDLE for row in rows]
        values = {name: np.concatenate([one[name] for one in each]) for name in NUMBERS}
        try:
            token, finite, batch = self._writer.step(self._batch, token, live, seeds, values)
        except Exception as error:  # whatever a backend raises, those who come later are served
            self._rows, self._batch = [None], self._start
            self._fail([(row.ticket, row.answer) for row in rows if row is not None], error)
            return
        self._batch = batch
        self.counts.rows[int(live.sum())] += 1
        for place in np.flatnonzero(live):
            row = rows[place]
            if not finite[place]:
                count = len(row.ticket.asked.ids) + row.drawn
                row.tell(Failed(row.answer, f"No token can be drawn: after {count} tokens the logits are not finite."))
            if not finite[place] or row.take(int(token[place]), self._ends):
                rows[place] = None

    def _fail(self, answers, error):
        logger.error("Answers failed: %s", error, exc_info=error)
        for ticket, answer in answers:
            tell(ticket, Failed(answer, "The server failed to compute this answer."))


def tell(ticket, event):
    """Hand over an event. Whoever cannot take it has gone; the others go on."""
    if ticket.gone:
        return
    try:
        ticket.deliver(event)
    except Exception as error:
        logger.error("An answer could not be handed over: %s", error, exc_info=error)
        ticket.gone = True
