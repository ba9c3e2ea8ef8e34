"""Strategies: which block of a model is computed on which device, in which dtype, and in how many bits it is stored.

They are written as in the `rwkv` package: 'cuda fp16i8 *20 -> cpu fp32' is 20 blocks on a GPU, stored in 8 bits and
computed in float16, and the rest on the processor. What follows the last block, a norm and the head, counts as one
more. Nothing here knows a machine: whether it has the devices is found where a model is planned.
"""

import re
from dataclasses import dataclass

from bert4keras_rwkv.untrusted import shown

AUTO = "auto"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
STORED = {"": None, "i8": "int8", "i4": "int4"}
DEVICE = re.compile(r"(cpu|cuda)(:[0-9]{1,3})?|mps")
NUMBERS = re.compile(f"({'|'.join(DTYPES)})({'|'.join(STORED)})")
COUNT = re.compile(r"\*([0-9]{1,6})(\+?)")

A_DEVICE = "a device: cpu, cuda, mps, or one of several, cuda:1"
A_DTYPE = "a dtype: fp32, fp16 or bf16, followed by i8 or i4 where matrices are stored in so many bits, as fp16i8"
A_COUNT = "a count, *20, or *20+ where the other blocks are streamed"
AN_ARROW = "'->' and another part"


@dataclass(frozen=True)
class Part:
    """What is true of some blocks, one after another.

    device: 'cpu', 'cuda', 'mps', or one of several, 'cuda:1'. dtype: what is computed in, 'float32', 'float16' or
    'bfloat16'. stored: how their matrices are stored, 'int8', 'int4', or None: in `dtype`. count: how many they are;
    None: what others leave, or a share of it. streamed: besides `count` blocks that stay on the device, all that no
    part has are kept in host memory, and brought there one by one when they are needed.
    """

    device: str
    dtype: str = "float32"
    stored: str | None = None
    count: int | None = None
    streamed: bool = False

    def __post_init__(self):
        given = {"device": self.device, "dtype": self.dtype, "stored": self.stored}
        known = {
            "device": isinstance(self.device, str) and DEVICE.fullmatch(self.device),
            "dtype": self.dtype in DTYPES.values(),
            "stored": self.stored in STORED.values(),
        }
        for name, right in known.items():
            if not right:
                raise ValueError(f"`{name}` is as `Part` says of it. Received: {shown(given[name])}.")
        if self.count is not None and (isinstance(self.count, bool) or not isinstance(self.count, int)):
            raise TypeError(f"`count` is an int, or None. Received: {shown(self.count)}.")
        if (self.streamed and self.count is None) or (self.count or 0) < 0:
            raise ValueError(f"`count` is how many blocks stay on the device, 0 or more. Received: {self.count!r}.")

    def __str__(self):
        numbers = _key(DTYPES, self.dtype) + _key(STORED, self.stored)
        count = "" if self.count is None else f" *{self.count}{'+' * self.streamed}"
        return f"{self.device} {numbers}{count}"


@dataclass(frozen=True)
class Place:
    """What is true of one block, or of the head, as in `Part`. streamed: it is kept in host memory itself."""

    device: str
    dtype: str
    stored: str | None
    streamed: bool = False


@dataclass(frozen=True)
class Strategy:
    """A strategy, of one `Part` or several; of none it is 'auto': what fits the memory of the machine.

    `Strategy.of` reads a string, and `str` writes it.
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self):
        if sum(part.streamed for part in self.parts) > 1:
            raise ValueError(f"Strategy '{self}': one part is streamed, with a '+', not several.")

    @classmethod
    def of(cls, given):
        """A `Strategy` from one, or from a string.

        Raises:
            ValueError: the string is none; at which word, and what could stand there.
            TypeError: it is no string.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, str):
            raise TypeError(f"`strategy` is a string such as 'cpu fp32', or a `Strategy`. Received: {shown(given)}.")
        words = given.replace("->", " -> ").split()
        return cls() if words == [AUTO] else cls(tuple(_parts(_Words(words, shown(given)))))

    @property
    def is_auto(self):
        """Whether it is to be chosen."""
        return not self.parts

    def places(self, blocks):
        """The `Place` of each of so many blocks, and of the head, which is the last and never streamed."""
        found = []
        for part, (staying, streamed) in zip(self.parts, self.counts(blocks), strict=True):
            found += [(part, False)] * staying + [(part, True)] * streamed
        return tuple(
            Place(part.device, part.dtype, part.stored, streamed and i < blocks)
            for i, (part, streamed) in enumerate(found)
        )

    def counts(self, blocks):
        """For each part how many stay on its device, and how many are streamed, of so many blocks and the head.

        Counts are taken in turn, while there are blocks. The others are streamed where a part is; else they are shared
        by the parts without a count, or go to the last part.
        """
        left, found = blocks + 1, []
        for part in self.parts:
            found.append([min(part.count or 0, left), 0])
            left -= found[-1][0]
        streamed = [i for i, part in enumerate(self.parts) if part.streamed]
        open_ones = [i for i, part in enumerate(self.parts) if part.count is None]
        if streamed:
            found[streamed[0]][1] = left
        for at, i in enumerate(open_ones or [len(found) - 1]):
            share = 0 if streamed else left // (max(len(open_ones), 1) - at)
            found[i][0] += share
            left -= share
        return [tuple(pair) for pair in found]

    def __str__(self):
        return " -> ".join(map(str, self.parts)) or AUTO


def widest(places):
    """The dtype in which what is computed anywhere can be kept."""
    found = {place.dtype for place in places}
    return found.pop() if len(found) == 1 else "float32"


class _Words:
    """The words of a strategy, read one after another."""

    def __init__(self, words, text):
        self._words, self._text, self._at = words, text, 0

    @property
    def ended(self):
        return self._at == len(self._words)

    def take(self, pattern, *wanted, needed=True):
        """The match of the next word; None if it is another one and is not needed."""
        found = None if self.ended else re.fullmatch(pattern, self._words[self._at])
        if found is None and needed:
            raise self.wrong(*wanted)
        self._at += found is not None
        return found

    def wrong(self, *wanted):
        """The error that says what could stand where the next word does."""
        wanted = ", or ".join(wanted)
        if self.ended:
            return ValueError(f"Strategy {self._text} ends where there has to be {wanted}.")
        word = shown(self._words[self._at])
        return ValueError(f"Strategy {self._text}: word {self._at + 1} is {word}. There can be {wanted}.")


def _parts(words):
    """The parts of a strategy, from its words."""
    here = [A_DEVICE, f"'{AUTO}' alone"]
    while True:
        device = words.take(DEVICE, *here)[0]
        dtype, stored = words.take(NUMBERS, A_DTYPE).groups()
        counted = words.take(COUNT, needed=False)
        count, plus = counted.groups() if counted else (None, "")
        yield Part(device, DTYPES[dtype], STORED[stored], None if count is None else int(count), bool(plus))
        if words.ended:
            return
        words.take("->", *([AN_ARROW] if counted else [A_COUNT, AN_ARROW]))
        here = [A_DEVICE]


def _key(table, value):
    """The key of a value."""
    return next(key for key, one in table.items() if one == value)
