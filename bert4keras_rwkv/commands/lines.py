"""What a line means: a message or a command, and the numbers for this line alone. Those with `+` are ChatRWKV's."""

import math
import re
from typing import NamedTuple


class Command(NamedTuple):
    """A command. usage: with what comes behind it. about: what it does."""

    usage: str
    about: str

    @property
    def name(self):
        return self.usage.partition(" ")[0]

    @property
    def takes(self):
        """What comes behind the name, '' for nothing; in brackets where it may be left out."""
        return self.usage.partition(" ")[2]


COMMANDS = {
    command.name: command
    for command in (
        Command("+", "another answer to the last message"),
        Command("+reset", "back to where the conversation began"),
        Command("+prompt PATH", "a new conversation with the template of a file"),
        Command("+gen TEXT", "write on from a text, apart from the conversation"),
        Command("+i TEXT", "an instruction, apart from the conversation"),
        Command("+qq TEXT", "a question, apart from the conversation"),
        Command("+qa TEXT", "a question to the conversation as it began"),
        Command("+++", "go on with what was written apart"),
        Command("++", "write that again, otherwise"),
        Command("/help", "what there is"),
        Command("/undo [N]", "take the last N messages back, with their answers"),
        Command("/retry", "as +"),
        Command("/fork NAME", "keep this conversation as it is under a name, and go on"),
        Command("/switch [NAME]", "go on with another conversation; without a name: which there are"),
        Command("/save FILE", "write the conversation to a file; /save! also over another file"),
        Command("/load FILE", "go on with the conversation of a file"),
        Command("/system TEXT", "a new conversation, and what the system says in it"),
        Command("/set [NAME VALUE]", "temperature 0.8, for instance; without a name: what can be set"),
        Command("/show", "sampling, tokens, and the state"),
        Command("/multiline", "messages of several lines, which an empty one ends; the same again: of one"),
        Command("/exit", "leave"),
    )
}
FLAGS = {"temp": ("temperature", 0.2, 5.0), "top_p": ("top_p", 0.0, 1.0)}  # name: field of Sampling, least, most
FLAG = re.compile(r"(?:(?<=\s)|^)-(temp|top_p)=(\S*)[^\S\n]*")
LOOKS_LIKE_ONE = re.compile(r"/[a-z]+!?|\+[a-z]+|\++", re.I)


class Line(NamedTuple):
    """command: a key of `COMMANDS`, None for a message. text: what is said, or comes behind the command. numbers:
    fields of `Sampling` for this line. forced: the command had an exclamation mark. notices: what was taken otherwise
    than it was given, as sentences.
    """

    command: str | None
    text: str
    numbers: dict
    forced: bool = False
    notices: tuple = ()


def line_of(given):
    """The `Line` in a str. Commands begin at its first character: a space before one makes a message of it.

    Raises:
        ValueError: an unknown command, one without what it takes or with what it does not, or a flag without a number.
    """
    numbers, notices = {}, ()
    if not given.startswith("/"):
        given, numbers, notices = _without_flags(given)
    word, _, rest = given.partition("\n") if "\n" in given.partition(" ")[0] else given.partition(" ")
    if not LOOKS_LIKE_ONE.fullmatch(word):
        return Line(None, given, numbers, notices=notices)
    name, forced = word.lower().removesuffix("!"), word.endswith("!")
    if name not in COMMANDS or (forced and name != "/save"):
        there = " ".join(COMMANDS)
        raise ValueError(f"There is no command {word}. There are: {there}. /help says what they do.")
    text, takes = rest.strip(), COMMANDS[name].takes
    if bool(text) != bool(takes) and not takes.startswith("["):
        rule = "needs something behind it" if takes else "takes nothing behind it"
        raise ValueError(f"{name} {rule}: {COMMANDS[name].usage}. A space before a line sends it as a message.")
    return Line(name, text, numbers, forced, notices)


def _without_flags(given):
    """A line without `-temp=X` and `-top_p=X`, what they mean, and a notice of each that is out of its range."""
    numbers, notices = {}, []

    def taken(found):
        name, least, most = FLAGS[found[1]]
        try:
            value = float(found[2])
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ValueError(
                f"-{found[1]}= is followed by a number, {least:g} to {most:g}. Received: {found[0].strip()}."
            )
        numbers[name] = min(max(value, least), most)
        if numbers[name] != value:
            notices.append(f"-{found[1]} is from {least:g} to {most:g}: it is {numbers[name]:g} for this line.")
        return ""

    left = FLAG.sub(taken, given)
    return (left.rstrip() if numbers else left), numbers, tuple(notices)
