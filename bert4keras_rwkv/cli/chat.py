"""`chat`: a conversation, in a terminal or by lines of a pipe."""

import dataclasses
import sys

from bert4keras_rwkv.cli.arguments import CHAT_SAMPLING, UsageError
from bert4keras_rwkv.cli.generate import StatusLine, chosen_sampling, load_to_write, tuned
from bert4keras_rwkv.cli.interrupts import Interrupts
from bert4keras_rwkv.cli.lines import lines_of
from bert4keras_rwkv.cli.screen import Screen
from bert4keras_rwkv.conversation.events import Left, Refused, Said
from bert4keras_rwkv.templates import template_of
from bert4keras_rwkv.tokenizers import load_tokenizer

DIGITS = " \t0123456789"  # tokens that are a part of this count nothing for the penalties, as in `rwkv`


def run(arguments):
    """Load the model and talk until whoever talks leaves."""
    for name, values in CHAT_SAMPLING.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, values[arguments.state is not None])
    sampling = chosen_sampling(arguments)
    template = chosen_template(arguments)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    sys.stdout.reconfigure(errors="replace")
    with StatusLine(sys.stderr) as line:
        line.show("loading the model")
        rwkv = load_to_write(arguments, tokenizer)
        state = tuned(rwkv, arguments)
    talk(conversation_of(arguments, rwkv, template, state, sampling), arguments)
