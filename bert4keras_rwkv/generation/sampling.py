"""What the user may ask of a draw, as one frozen value."""

from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np

NAMES = ("greedy", "top_k", "top_p", "random")
SEARCH_MODES = ("greedy", "topk", "topp")
ROOMS = (8, 20, 40, 64, 128, 256)  # of `top_k`, for which programs are made; for a larger one, one without a limit
LARGEST = float(np.finfo("float32").max)  # they are computed with in float32
ALL = 2**31 - 1  # a count, or a length, that is never reached
REPLY_LENGTHS = (40, 150)  # tokens, as in ChatRWKV
MARKS = "，：？！"  # that ChatRWKV lets nobody write twice in a row


@dataclass(frozen=True)
class Plan:
    """The part of a `Sampling` that shapes the compiled program; the numbers are its arguments (`Sampling.values`).

    room: no row has a larger `top_k`; 0: it may have any; None: no row has one. newline: there is a `newline_id`.
    no_repeat: for how many ids there is room.
    """

    greedy: bool = False
    room: int | None = None
    top_p: bool = False
    penalty: bool = False
    max_penalty_range: tuple[int, int] | None = None
    frequency: bool = False
    penalty_free: tuple[int, ...] = ()
    mask_output: tuple[int, ...] = ()
    temperature_after: bool = False
    newline: bool = False
    no_repeat: int = 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    `Sampling()` draws from the model's distribution as it is; each field changes one thing. In the order in which they
    act on the logits:

    penalty: 1.0 for none. For each token of the text so far, prompt included, with n = 1 a logit above 0 is divided by
        penalty^n, another multiplied by it.
    penalty_window: W looks only at the block of W positions being written and the one before; None at all of them.
    max_penalty_range: (low, high) sets n = min(count, high) for tokens that occur at least `low` times, else 0.
    presence_penalty, frequency_penalty, penalty_decay: for each generated token, logit -= presence + count * frequency;
        counts fade by the factor penalty_decay at each step.
    penalty_free: ids whose occurrences add nothing to their count.
    newline_id: the id of a line feed, for answers of a soft length, as in ChatRWKV: their first token is none; in the
        next ones it is unlikely, but less and less; beyond a length more and more likely. None for no such rule.
    newline_lengths: (short, long), in tokens. With i tokens of the answer written, (i - short) / 10 is added to the
        logit of `newline_id` up to i = short, and min(3, (i - long) / 4) from i = long on.
    no_repeat: ids that are not produced right after themselves, the last one of the prompt included.
    mask_output: ids that are never produced.
    temperature: the logits are divided by it. 0 is greedy: always the likeliest token.
    top_k: only the k likeliest tokens. None or 0 for all.
    top_p: only the smallest set of the likeliest tokens that holds this share of the whole probability, the token that
        reaches it included. 1.0 for all; 0 is greedy.
    temperature_after: divide by the temperature after top_k and top_p have chosen, not before.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    penalty: float = 1.0
    penalty_window: int | None = None
    max_penalty_range: tuple[int, int] | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 1.0
    penalty_free: tuple[int, ...] = ()
    mask_output: tuple[int, ...] = ()
    temperature_after: bool = False
    newline_id: int | None = None
    newline_lengths: tuple[int, int] = REPLY_LENGTHS
    no_repeat: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("penalty_free", "mask_output", "no_repeat"):
            object.__setattr__(self, name, _ids(name, getattr(self, name)))
        if self.max_penalty_range is not None:
            object.__setattr__(self, "max_penalty_range", _penalty_range(self.max_penalty_range))
        object.__setattr__(self, "newline_lengths", _newline_lengths(self.newline_lengths))
        if not isinstance(self.temperature_after, bool):
            raise ValueError(f"`temperature_after` is True or False. Received: {self.temperature_after!r}.")
        self._check_numbers()
        self._check_counts()

    def _check_numbers(self):
        for name, rule, way_out, valid in (
            ("temperature", "divides the logits, 0 or above", "Use 0 for greedy, 1.0 for no change", lambda x: x >= 0),
            (
                "top_p",
                "is the share of probability to keep, in [0, 1]",
                "Use 1.0 to keep every token",
                lambda x: 0 <= x <= 1,
            ),
            ("penalty", "divides the logits of tokens seen before, above 0", "Use 1.0 for none", lambda x: x > 0),
            ("presence_penalty", "is subtracted from logits, a finite number", "Use 0.0 for none", lambda x: True),
            ("frequency_penalty", "is subtracted from logits, a finite number", "Use 0.0 for none", lambda x: True),
            (
                "penalty_decay",
                "is the factor by which counts fade, in [0, 1]",
                "Use 1.0 for none",
                lambda x: 0 <= x <= 1,
            ),
        ):
            value = getattr(self, name)
            if not (_is(value, Real) and abs(value) <= LARGEST and valid(value)):  # not for NaN, either
                raise ValueError(f"`{name}` {rule}. Received: {name}={value!r}. {way_out}.")

    def _check_counts(self):
        if self.top_k is not None and not (_is(self.top_k, Integral) and self.top_k >= 0):
            raise ValueError(
                "`top_k` is the number of tokens to keep, an int, or 0 for all. "
                f"Received: top_k={self.top_k!r}. Use top_k=None to keep every token."
            )
        window = self.penalty_window
        if window is not None and not (_is(window, Integral) and window >= 1):
            raise ValueError(
                "`penalty_window` is the length of a block of positions, an int of at least 1. "
                f"Received: penalty_window={window!r}. Use penalty_window=None to look at the whole text."
            )
        newline = self.newline_id
        if newline is not None and not (_is(newline, Integral) and newline >= 0):
            raise ValueError(
                "`newline_id` is the id of a line feed, an int of at least 0. "
                f"Received: newline_id={newline!r}. Use newline_id=None for no rule about it."
            )

    @classmethod
    def of(cls, given, default=None):
        """A `Sampling` from one, from a name of Keras Hub's, or `default` for None."""
        if given is None:
            return default
        if isinstance(given, str):
            return cls.named(given)
        if not isinstance(given, cls):
            raise ValueError(
                f"`sampling` is a `Sampling` or one of the names {_listed(NAMES)}. Received: {given!r}. "
                "Use Sampling(temperature=..., top_k=..., top_p=...)."
            )
        return given

    @classmethod
    def from_pipeline(
        cls,
        temperature=1.0,
        top_p=0.85,
        top_k=0,
        alpha_frequency=0.2,
        alpha_presence=0.2,
        alpha_decay=0.996,
        token_ban=(),
        tokenizer=None,
        **options,
    ):
        """The `Sampling` that `rwkv.utils.PIPELINE_ARGS` with these values means, its defaults included.

        There the temperature comes after top-k and top-p, a temperature or top_p of 0 is greedy, and top_k of 0 keeps
        all. tokenizer: the vocabulary, for the rule that the occurrences of tokens whose text is part of
        ' \\t0123456789' do not add up; None leaves that rule out. `token_stop` is `stop_token_ids` of `generate`, and
        `chunk_len` changes no answer. options: other fields of `Sampling`.
        """
        return cls(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            frequency_penalty=alpha_frequency,
            presence_penalty=alpha_presence,
            penalty_decay=alpha_decay,
            penalty_free=() if tokenizer is None else tokenizer.parts_of(" \t0123456789"),
            mask_output=tuple(token_ban),
            **{"temperature_after": True, **options},
        )

    @classmethod
    def named(cls, name, **options):
        """The sampler that Keras Hub calls `name`, with its numbers: "greedy", "top_k" (5), "top_p" (0.1), "random"."""
        known = {"greedy": {"temperature": 0.0}, "top_k": {"top_k": 5}, "top_p": {"top_p": 0.1}, "random": {}}
        if name not in known:
            raise ValueError(
                f"`sampling` is a `Sampling` or one of the names {_listed(NAMES)}. Received: {name!r}. "
                "Use Sampling(temperature=..., top_k=..., top_p=...) for anything else."
            )
        return cls(**{**options, **known[name]})

    @classmethod
    def from_search_mode(cls, search_mode, k=1, **options):
        """The `Sampling` that `build_cache_model(search_mode=, k=)` means; options: its other fields.

        'greedy' ignores k. 'topk': k an int above 1. 'topp': k a float in (0, 1], or [p, k].
        """
        if search_mode == "greedy":
            return cls(**{**options, "temperature": 0.0})
        if search_mode == "topk":
            return cls(**{**options, "top_k": _top_k(k)})
        if search_mode == "topp":
            p, count = _top_p(k)
            return cls(**{**options, "top_p": p, "top_k": count})
        raise ValueError(
            f"`search_mode` is one of {_listed(SEARCH_MODES)}. Received: search_mode={search_mode!r}. "
            "Use 'greedy' for the likeliest token at each step."
        )

    def paced(self, tokenizer, newline=True, marks=True):
        """This with what ChatRWKV does to replies: its soft length, and that no punctuation is written twice in a row.

        newline, marks: which of the two. Marks that are no single token of the vocabulary are left out.
        """
        newline_id = tokenizer.token_to_id("\n") if newline else self.newline_id
        ids = [tokenizer.encode(mark) for mark in MARKS] if marks else []
        single = tuple(found[0] for found in ids if len(found) == 1)
        return replace(self, newline_id=newline_id, no_repeat=(*self.no_repeat, *single))

    def plan(self):
        """The `Plan`: what a compiled program is made for. Two samplings with equal plans share one program."""
        greedy = self.temperature == 0 or self.top_p == 0
        return Plan(
            greedy=greedy,
            room=None if greedy or not self.top_k else next((n for n in ROOMS if n >= self.top_k), 0),
            top_p=not greedy and self.top_p < 1,
            penalty=self.penalty != 1,
            max_penalty_range=self.max_penalty_range if self.penalty != 1 else None,
            frequency=self.presence_penalty != 0 or self.frequency_penalty != 0,
            penalty_free=self.penalty_free,
            mask_output=self.mask_output,
            temperature_after=self.temperature_after and not greedy,
            newline=self.newline_id is not None,
            no_repeat=self._no_repeat_room(),
        )

    def _no_repeat_room(self):
        """A power of four, so that few programs do for all `no_repeat`."""
        room = 1
        while room < len(self.no_repeat):
            room *= 4
        return room if self.no_repeat else 0

    def values(self, batch):
        """The numbers, one for each of `batch` rows: a dict of (batch,) arrays, arguments of the program.

        They are float32, but `top_k` and `penalty_window`, counts, are int32. `newline` (batch, 3) and `no_repeat`
        (batch, N), int32, are there where the plan has them: what is not asked for is not handed over at each step.
        """
        numbers = ("temperature", "top_p", "penalty", "presence_penalty", "frequency_penalty", "penalty_decay")
        values = {name: np.full(batch, getattr(self, name), "float32") for name in numbers}
        counts = {name: min(getattr(self, name) or ALL, ALL) for name in ("top_k", "penalty_window")}
        values |= {name: np.full(batch, count, "int32") for name, count in counts.items()}
        if self.newline_id is not None:
            values["newline"] = np.tile(np.array([self.newline_id, *self.newline_lengths], "int32"), (batch, 1))
        if self.no_repeat:
            ids = [*self.no_repeat, *[-1] * (self._no_repeat_room() - len(self.no_repeat))]
            values["no_repeat"] = np.tile(np.array(ids, "int32"), (batch, 1))
        return values

    def check(self, vocabulary, length):
        """Raise ValueError where this does not fit `vocabulary` ids or a buffer of `length` positions."""
        newline = () if self.newline_id is None else (self.newline_id,)
        for name in ("penalty_free", "mask_output", "no_repeat", "newline_id"):
            ids = newline if name == "newline_id" else getattr(self, name)
            outside = [i for i in ids if i >= vocabulary]
            if outside:
                raise ValueError(
                    f"`{name}` holds ids of the vocabulary, 0 to {vocabulary - 1}. Received: {name} with {outside}. "
                    "Leave them out."
                )
        if len(set(self.mask_output)) >= vocabulary:
            raise ValueError(
                f"`mask_output` must leave at least one of the {vocabulary} ids. "
                f"Received: mask_output with all of them. Leave out the ids that may be produced."
            )
        window = self.penalty_window
        if self.plan().penalty and window is not None and length % window:
            raise ValueError(
                "The length of the buffer must be a multiple of `penalty_window`. "
                f"Received: length {length}, penalty_window={window}. "
                f"Use a length of {-(-length // window) * window}, or penalty_window=None."
            )


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


def _listed(names):
    return ", ".join(repr(name) for name in names)


def _ids(name, ids):
    ids = () if ids is None else tuple(np.asarray(ids).ravel().tolist())
    if not all(_is(i, Integral) and i >= 0 for i in ids):
        raise ValueError(f"`{name}` holds token ids, ints of at least 0. Received: {name}={ids!r}. Use () for none.")
    return ids


def _penalty_range(pair):
    low, high = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
    if not (_is(low, Integral) and _is(high, Integral) and 1 <= low <= high):
        raise ValueError(
            "`max_penalty_range` is [low, high], ints with 1 <= low <= high. "
            f"Received: max_penalty_range={pair!r}. Use None to penalise every token seen once."
        )
    return int(low), int(high)


def _newline_lengths(pair):
    short, long = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
    if not (_is(short, Integral) and _is(long, Integral) and 0 <= short <= long <= ALL):
        raise ValueError(
            "`newline_lengths` is (short, long), numbers of tokens, ints with 0 <= short <= long. "
            f"Received: newline_lengths={pair!r}. Use {REPLY_LENGTHS}."
        )
    return int(short), int(long)


def _top_k(k):
    if not (_is(k, Integral) and k > 1):
        raise ValueError(
            "With search_mode='topk', `k` is the number of tokens to keep, an int above 1. "
            f"Received: k={k!r}. Use search_mode='greedy' to keep one."
        )
    return int(k)


def _top_p(k):
    pair = isinstance(k, tuple | list) and len(k) == 2
    p, count = k if pair else (k, None)
    whole = pair and _is(p, Integral) and p == 1
    fits = whole or (_is(p, Real) and not isinstance(p, Integral) and 0 < p <= 1)
    if not fits or (pair and not (_is(count, Integral) and count >= 1)):
        raise ValueError(
            "With search_mode='topp', `k` is the share of probability to keep, a float in (0, 1], or [p, k] with the "
            f"number of tokens to keep, an int of at least 1. Received: k={k!r}. Use k=1.0 to keep every token."
        )
    return float(p), None if count is None else int(count)
