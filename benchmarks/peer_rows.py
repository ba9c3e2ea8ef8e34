"""The loop that the server runs, without HTTP: python -m benchmarks.peer_rows rows|scheduler MODEL [STRATEGY].

`rows` is the bare loop over a batch: prompts are read, each step's tokens are looked at while the next is computed, and
there is no text. `scheduler` is what the server hands its requests to.
"""

import itertools
import queue
import sys
import time

import numpy as np

from bert4keras_rwkv.generation.rows import NUMBERS, Rows
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.models.request import seeds
from bert4keras_rwkv.models.rows import GROUP, PIECES, RowWriter, compile_all, sizes_up_to
from bert4keras_rwkv.server.asked import Asked, Failed, Piece
from bert4keras_rwkv.server.scheduler import Scheduler

from .worker import serve

PROMPT = "{}. The old machine in the corner hums at night"  # as long as what servers are asked
GREEDY = Sampling(temperature=0)
ROWS = 16


class Bare:
    """The writer of rows alone."""

    def __init__(self, rwkv):
        self._tokenizer, self._numbers = rwkv.tokenizer, itertools.count()
        self._size = rwkv.config.vocab_size
        self._writer = RowWriter(rwkv.backbone, rwkv.tokenizer.without_text(self._size))
        self._start, _ = compile_all(self._writer, sizes_up_to(ROWS), rwkv.state_for(None, 1))

    def greedy(self, n, count):
        """n tokens in all, of so many rows: seconds."""
        began = time.perf_counter()
        batch = self._writer.taken(self._start, self._start, [0] * count)
        for first in range(0, count, GROUP):
            for place, row in enumerate(self._read(min(GROUP, count - first)), first):
                batch = self._writer.taken(batch, row, [*range(place), count, *range(place + 1, count)])
        values = {name: np.repeat(value, count) for name, value in GREEDY.values(1).items() if name in NUMBERS}
        live, allowed = np.ones(count, bool), ops.ones((count, self._size), "bool")
        before = None
        for number in range(n // count):
            drawn = self._writer.step(batch, live, np.full((count, 2), number, "int32"), values, allowed)
            batch = drawn.batch
            _look(before)
            before = drawn
        _look(before)
        return time.perf_counter() - began

    def _read(self, count):
        """Batches of one row that have each read a new prompt but for its last token."""
        prompts = [self._tokenizer.encode(PROMPT.format(next(self._numbers))) for _ in range(count)]
        size = min(size for size in PIECES if size >= max(map(len, prompts)) - 1)
        several = [ids[:-1] for ids in prompts]
        read = self._writer.read([self._start] * count, several, (1 if count == 1 else GROUP, size))
        return [one._replace(rows=Rows.one(self._size, ids[-1])) for one, ids in zip(read, prompts, strict=True)]


def _look(drawn):
    """Wait for the tokens of a step, if there is one."""
    if drawn is not None:
        ops.convert_to_numpy(drawn.batch.rows.token), ops.convert_to_numpy(drawn.finite)


class Scheduled:
    """The scheduler alone."""

    def __init__(self, rwkv):
        self._tokenizer, self._numbers = rwkv.tokenizer, itertools.count()
        self._scheduler = Scheduler(rwkv, ROWS)
        self._scheduler.start()

    def greedy(self, n, count):
        """n tokens in all, of so many answers at once: seconds."""
        began, events, each = time.perf_counter(), queue.SimpleQueue(), n // count
        for _ in range(count):
            ids = tuple(self._tokenizer.encode(PROMPT.format(next(self._numbers))))
            self._scheduler.submit(Asked(ids, seeds(0, 1), each, GREEDY, min_tokens=each), events.put)
        while count:
            event = events.get()
            if isinstance(event, Failed):
                raise RuntimeError(event.message)
            count -= not isinstance(event, Piece)
        return time.perf_counter() - began


def make():
    way, model, *strategy = sys.argv[1:]
    numbers = {"strategy": strategy[0]} if strategy else {"quantization": "auto"}  # as `serve` loads it
    return {"rows": Bare, "scheduler": Scheduled}[way](RWKV.from_preset(model, **numbers))


if __name__ == "__main__":
    serve(make)
