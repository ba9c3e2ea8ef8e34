"""Reading the values of options: what cannot be is refused with the rule, before anything else is loaded."""

import argparse
import math
import re
from dataclasses import dataclass

from bert4keras_rwkv.strategy import Strategy

LARGEST = 2**31 - 1  # positions and ids are int32
LARGEST_FLOAT = 3.4e38  # of float32


@dataclass(frozen=True)
class Whole:
    """Reads a whole number of a range."""

    low: int
    high: int = LARGEST

    def __call__(self, text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not self.low <= value <= self.high:
            raise _refused(f"a whole number from {self.low} to {self.high}", text)
        return value


@dataclass(frozen=True)
class Real:
    """Reads a number that float32 can hold, of a range. above: whether `low` itself is too small."""

    low: float = -LARGEST_FLOAT
    high: float = LARGEST_FLOAT
    above: bool = False

    def __call__(self, text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high or (self.above and value == self.low):
            raise _refused(self._rule(), text)
        return value

    def _rule(self):
        above = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        bounds = [] if self.low == -LARGEST_FLOAT else [above]
        bounds += [] if self.high == LARGEST_FLOAT else [f"to {self.high:g}"]
        return " ".join(["a finite number", *bounds])


@dataclass(frozen=True)
class Names:
    """Reads some of the known names, with commas between them."""

    known: tuple

    def __call__(self, text):
        names = tuple(dict.fromkeys(text.split(",")))
        if not set(names) <= set(self.known):
            raise _refused(f"{' or '.join(self.known)}, or {','.join(self.known)},", text)
        return names


UNITS = {"": 1, **{f"{letter}B": 1000**n for n, letter in enumerate("KMGT", 1)}}
UNITS |= {f"{letter}iB": 1024**n for n, letter in enumerate("KMGT", 1)}


def size(text):
    """Reads a number of bytes: '2GiB', '500MB', '0'."""
    found = re.fullmatch(r"(\d{1,15})\s*([KMGT]i?B|)", text)
    if found is None:
        raise _refused("a size, such as 2GiB or 500MB,", text)
    return int(found[1]) * UNITS[found[2]]


def named_path(text):
    """Reads 'NAME=FILE', as a pair."""
    name, _, file = text.partition("=")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) is None or not file:
        raise _refused("NAME=FILE, the name of letters, digits, `_` and `-`,", text)
    return name, path(file)


def path(given):
    """Reads the name of a file or folder. An empty one, as of a shell variable that is not set, names nothing."""
    if not given or "\0" in given:
        raise _refused("the name of a file or folder", given)
    return given


def strategy(given):
    """Reads a `Strategy`."""
    try:
        return Strategy.of(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error


def utf8(given):
    """Reads a text, which is valid Unicode."""
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refused("text in UTF-8", given) from error
    return given


def _refused(rule, given):
    shown = ascii(given if len(given) <= 40 else given[:37] + "...")
    return argparse.ArgumentTypeError(f"{rule} is expected. Received: {shown}")
