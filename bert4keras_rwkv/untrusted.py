"""What comes from a file that nobody vouches for: its JSON, and how much of it is shown, and how."""

import json
import os
import reprlib
import stat
import unicodedata

LONGEST_MESSAGE = 1800
END = 400  # characters of a long message that stay at its end, where the way out stands
LONGEST_NUMBER = 1000  # digits
DEEPEST = 64  # objects and arrays in each other; a config has two, a tokenizer.json six

TURNING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 80, 80


def printable(message):
    """A message that holds what a file says: of bounded length, and with nothing that a terminal would act upon."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE - END]} [...] {message[-END:]}"
    if message.isprintable():
        return message
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in message
    )


def for_terminal(text):
    """A text that somebody wants to read, with nothing that a terminal would act upon but line feeds and tabs.

    Signs without a width that scripts and emoji need (joiners, marks of direction) stay; those that turn a line around
    (U+202A to U+202E, U+2066 to U+2069) do not.
    """
    return "".join(one.encode("unicode_escape").decode() if _acts(one) else one for one in text)


def _acts(one):
    return one in TURNING or (unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") and one not in "\n\t")


def told(error):
    """What an error says; one of the system with the name of the file, and without its number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def shown(value):
    """A value as text, for a message: its beginning, whatever its size and depth."""
    return printable(_short.repr(value))


def regular(path, what, error=ValueError):
    """`path`, if no pipe or device is there: opening a pipe waits for whoever writes, and a device may do anything.

    what: what is read from it, in plural, for the `error`.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise error(f"'{path}' is no regular file, but a pipe or a device. {what} are read from files.")
    return path


def parse_json(text, where, once=True):
    """The value in a JSON text, str or bytes. where: what it is called in errors. once: refuse a key that comes twice.

    Raises:
        ValueError: it is none, has a key twice in one object, or more than `DEEPEST` objects and arrays in each other.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_once if once else None, parse_int=_whole)
        deep = _deeper(value, DEEPEST)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise ValueError(printable(f"{where} is no JSON: {error}.")) from error
    if deep:
        raise ValueError(f"{where} is no JSON of a sensible depth: at most {DEEPEST} objects or arrays in each other.")
    return value


def _whole(digits):
    """An int. What Python says of thousands of digits is advice to programmers."""
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def _once(pairs):
    """An object as a dict. A key that comes twice says two things, and each reader believes another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {shown(twice)} comes twice in one object")
    return found


def _deeper(value, levels):
    """Whether there are more than so many objects and arrays in each other."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is not None and (levels == 0 or any(_deeper(one, levels - 1) for one in inside))
