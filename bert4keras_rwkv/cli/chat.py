"""`chat`: a conversation, in a terminal or by the lines of a pipe."""

import contextlib
import dataclasses
import sys

from bert4keras_rwkv.cli.arguments import SAMPLING, UsageError
from bert4keras_rwkv.cli.generate import StatusLine, load_to_write, named_template, paced, tuned
from bert4keras_rwkv.cli.interrupts import Interrupts
from bert4keras_rwkv.cli.lines import lines_of
from bert4keras_rwkv.cli.screen import Screen
from bert4keras_rwkv.commands.events import Left, Refused, Said
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.templates import read_template
from bert4keras_rwkv.tokenizers import load_tokenizer

DIGITS = " \t0123456789"  # tokens that are a part of this do not count up for the penalties, as in `rwkv`
GREETING = "/help says which commands there are. Ctrl-C ends a reply, twice it leaves."
GENTLER = "A state was loaded, so replies are drawn more gently"
ONCE_MORE = "Ctrl-C once more leaves."


def run(arguments):
    """Load the model and talk until whoever talks leaves."""
    template, numbers = chosen_template(arguments), given_numbers(arguments)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    sys.stdout.reconfigure(errors="replace")
    screen, interrupts = Screen(arguments.echo), Interrupts()
    with StatusLine(sys.stderr) as line:
        line.show("loading the model")
        rwkv = load_to_write(arguments, tokenizer)
        conversation = begun(arguments, rwkv, template, numbers, screen, interrupts)
    lines = lines_of(conversation, screen)
    screen.talking = lines.talking
    screen.show(Said(GREETING))
    if (arguments.state or rwkv.backbone.start_states) and not arguments.load:
        drawn = conversation.chat.sampling
        names = ("top_p", "presence_penalty", "frequency_penalty")
        screen.notice(f"{GENTLER}: {', '.join(f'{name} {getattr(drawn, name)}' for name in names)}.")
    talk(conversation, lines, screen, interrupts)


def chosen_template(arguments):
    """The template that the options name; 'auto' where none does."""
    named = arguments.load and [
        f"--{name}" for name in ("template", "prompt", "lang", "system", "state") if getattr(arguments, name)
    ]
    if named:
        raise UsageError(f"--load goes on with a conversation as it is. Leave out {', '.join(named)}.")
    friends = arguments.lang and named_template(f"friends-{arguments.lang}")
    if not arguments.prompt and arguments.template in (None, "auto"):
        return friends or "auto"
    template = read_template(arguments.prompt) if arguments.prompt else named_template(arguments.template)
    return dataclasses.replace(template, dialogue=friends.dialogue) if friends else template


def given_numbers(arguments):
    """The fields of `Sampling` that the options name, checked."""
    more = ("max_penalty_range", "penalty_free", "mask_output", "temperature_after")
    given = {name: getattr(arguments, name) for name in (*SAMPLING, *more)}
    given = {name: value for name, value in given.items() if not (value is None or value is False or value == ())}
    try:
        Sampling(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return given


def begun(arguments, rwkv, template, numbers, screen, interrupts):
    """The `Conversation` that the options describe."""
    from bert4keras_rwkv.chat.conversation import Chat
    from bert4keras_rwkv.commands.conversation import Conversation

    state = tuned(rwkv, arguments)
    if arguments.load:
        chat = Chat.load(arguments.load, rwkv, chunk_len=arguments.chunk_len)
    else:
        seed, reading = arguments.seed, arguments.chunk_len
        chat = Chat(rwkv, template, arguments.system, state, seed=seed, mode=arguments.mode, chunk_len=reading)
        numbers = {"penalty_free": rwkv.tokenizer.parts_of(DIGITS), **numbers}
    if arguments.max_new_tokens:
        chat.max_new_tokens = arguments.max_new_tokens
    chat.sampling = paced(dataclasses.replace(chat.sampling, **numbers), arguments, rwkv.tokenizer)
    return Conversation(
        chat,
        state,
        arguments.seed,
        stop=lambda: interrupts.asked,
        progress=screen.reading,
        file=arguments.load,
        free_tokens=arguments.max_new_tokens,
    )


def talk(conversation, lines, screen, interrupts):
    """Take lines until there are no more, or whoever types them leaves.

    A first Ctrl-C ends what is being read or written, or drops the line; a second one leaves, if no line came between.
    """
    leaving = False
    while True:
        try:
            line = lines.next_line()
            if line is None:
                return
            leaving = False
            with interrupts if lines.talking else contextlib.nullcontext():
                for event in conversation.take(line):
                    if isinstance(event, Left):
                        return
                    screen.show(event)
            leaving = interrupts.asked
        except ValueError as error:
            screen.show(Refused(str(error)))
        except KeyboardInterrupt:
            if not lines.talking:
                raise
            if leaving or interrupts.asked:
                return
            leaving = True
            screen.show(Said(ONCE_MORE))
