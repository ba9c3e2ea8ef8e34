"""What a scheduler is asked to write, and what it tells: values, and a `Ticket` for what is on its way."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.server.places import Place
from bert4keras_rwkv.state import RWKVState


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be written: answers to one prompt.

    ids: at least one. seeds: (n, 2) int32 (models/request.seeds), for n answers. limit: tokens of an answer at most.
    sampling: a `Sampling` of the fields in `generation.rows.NUMBERS`. stops: texts that end an answer.
    start: an RWKVState of one row in which `ids` begin, None: as the model says. origin: what the cache knows `start`
    by, "" for None, and None if it is not to know it.
    key: who asks; keys take turns. seconds: how long it may take, from now on, None for no limit.
    min_tokens: an answer does not end before it has as many. bias: pairs (id, number) for logits. logprobs: how many
    of the likeliest tokens are told beside each, None for nothing.
    constraint: a function that returns, for an answer, an object with `mask()`, int32 (words,), a bit for each id that
    may come; `take(id)`; and `ended`, whether nothing may follow. Its ValueErrors end the answer.
    keep: whether `Done` has the `Place` behind the answer. shared: how many of the first ids others are likely to have,
    too, such as those of what the system says: the cache keeps the state behind them.
    """

    ids: tuple[int, ...]
    seeds: np.ndarray
    limit: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    start: RWKVState | None = None
    origin: str | None = ""
    key: str = ""
    seconds: float | None = None
    min_tokens: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    constraint: Callable[[], Any] | None = None
    keep: bool = False
    shared: int = 0

    @property
    def answers(self):
        """How many answers are wanted."""
        return len(self.seeds)


class Token(NamedTuple):
    """A drawn token: how likely the model found it, and the likeliest ones, pairs (id, logprob)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text of one of the answers. tokens: `Token`s, where they were asked for."""

    answer: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclasses.dataclass(frozen=True)
class Done:
    """An answer has ended. reason: 'stop' or 'length'. tokens: how many were drawn. cached: how many of the prompt were
    not read, for a state was kept. text: the whole. ids: of its tokens, but for one that was cut by a stop text.
    place: behind `ids`, where it was asked for.
    """

    answer: int
    reason: str
    tokens: int
    cached: int
    text: str
    ids: tuple[int, ...]
    place: Place | None = None


@dataclasses.dataclass(frozen=True)
class Failed:
    """An answer cannot go on. status: as HTTP has it, 504 if its time is over, 400 if it cannot be as asked."""

    answer: int
    message: str
    status: int = 500


class Ticket:
    """One `Asked` on its way. `leave` it when nobody wants its answers any more."""

    def __init__(self, asked, deliver, wake):
        self.asked, self.deliver, self._wake = asked, deliver, wake
        self.begun = time.monotonic()
        self.gone = False

    @property
    def late(self):
        """Whether its time is over."""
        return self.asked.seconds is not None and time.monotonic() - self.begun > self.asked.seconds

    def leave(self):
        """Write nothing more: its rows are free before the next token."""
        self.gone = True
        self._wake()
