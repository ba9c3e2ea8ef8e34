"""`generate`: text on stdout as it is written, what happens meanwhile on stderr."""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np

from bert4keras_rwkv.atomic import check_file
from bert4keras_rwkv.cli.arguments import SAMPLING, UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.cli.interrupts import Interrupts
from bert4keras_rwkv.commands.show import counted
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.templates import prompt_ids, template_for, template_of
from bert4keras_rwkv.tokenizers import load_tokenizer
from bert4keras_rwkv.untrusted import for_terminal, told
from bert4keras_rwkv.weights.checkpoint import named

logger = logging.getLogger("bert4keras_rwkv")


def run(arguments):
    """Load the model, write text, and say how many tokens it took and how fast they came."""
    sampling = chosen_sampling(arguments)
    prompt = prompt_text(arguments.prompt)
    check_saving(arguments)
    template = None if arguments.template in (None, "auto") else named_template(arguments.template)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another one
    with StatusLine(sys.stderr) as line:
        line.show("loading the model")
        rwkv = load_to_write(arguments, tokenizer)
        state = tuned(rwkv, arguments)
        stops = [stop for stop in arguments.stop if stop]
        if arguments.template:
            origin = rwkv.origin
            template = template or template_of(template_for(origin.name, origin.template, rwkv.config.vocab_size))
            ids = prompt_ids(rwkv.tokenizer, template, prompt, opening=state is None)
            prompt, stops = rwkv.tokenizer.decode(ids), [*stops, *template.stop_texts]
        else:
            ids = rwkv.tokenizer.encode(prompt)
        options = {"sampling": paced(sampling, arguments, rwkv.tokenizer), "state": state, "stop_texts": stops}
        seed = first_seed(arguments)
        pieces = rwkv.stream(
            ids,
            arguments.max_length,
            max_new_tokens=arguments.max_new_tokens,
            seed=seed,
            as_text=True,
            **options,
        )
        line.show("reading the prompt")
        before = prompt if arguments.echo else ""
        with Interrupts() if arguments.interactive_stop else contextlib.nullcontext() as interrupts:
            for number in range(arguments.trials or 1):
                if arguments.trials:
                    pieces = pieces.again(seed + number)
                    write(f"--- {number + 1} of {arguments.trials}, seed {seed + number}\n")
                clock = write_stream(pieces, line, before, interrupts)
                write("\n")
                print(clock.summary(), file=sys.stderr)
                if interrupts is not None and interrupts.asked:
                    print(f"Stopped after {counted(len(pieces.ids), 'token')}.", file=sys.stderr)
                    break
        if arguments.save_state is not None:
            rwkv.save_state(state_after(rwkv, pieces), arguments.save_state)


def named_template(name):
    """The `Template` of a name or of a file."""
    try:
        return template_of(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_saving(arguments):
    """A UsageError where `--save-state` cannot be done in the end."""
    if arguments.save_state is None:
        return
    path = Path(arguments.save_state)
    if arguments.trials:
        raise UsageError("--save-state keeps the state after one text, and --trials writes several. Leave one out.")
    if path.suffix in (".pth", ".st"):
        raise UsageError(
            f"--save-state '{path}': files of the kind {path.suffix} hold no last inputs, which a state after a text "
            "has. Give it another suffix; `bert4keras-rwkv state --drop-shift` makes such a file of it."
        )
    if not path.parent.is_dir():
        raise UsageError(f"--save-state '{path}': there is no folder '{path.parent}'. Make it first.")
    try:
        check_file(path)
    except OSError as error:
        raise UsageError(f"--save-state: {told(error)}.") from error


def first_seed(arguments):
    """The seed of the first text. Trials tell theirs, so one that nobody gave is chosen here."""
    if arguments.seed is None and arguments.trials:
        return int(np.random.default_rng().integers(2**31))
    return arguments.seed


def state_after(rwkv, pieces):
    """The RWKVState after all that a `Stream` gave; after the prompt's last token but one where it gave nothing."""
    return rwkv.prefill(np.array([pieces.ids[-1:]], "int32"), pieces.state)[1] if pieces.ids else pieces.state


def paced(sampling, arguments, tokenizer):
    """`sampling` with `--newline-schedule` and `--no-repeat-marks`."""
    return sampling.paced(tokenizer, arguments.newline_schedule, arguments.no_repeat_marks)


def chosen_sampling(arguments):
    """The `Sampling` that the options describe."""
    try:
        return Sampling(
            **{name: getattr(arguments, name) for name in SAMPLING},
            max_penalty_range=arguments.max_penalty_range,
            penalty_free=arguments.penalty_free,
            mask_output=arguments.mask_output,
            temperature_after=arguments.temperature_after,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def prompt_text(given):
    """The prompt itself, or what stdin holds for '-', as it is."""
    try:
        prompt = sys.stdin.buffer.read().decode("utf-8") if given == "-" else given
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompt -: what stdin holds is no text in UTF-8: {error}. Convert it first.") from error
    if not prompt:
        raise UsageError("The prompt is empty. Give it at least one character, a line break for example.")
    return prompt


def load(arguments, tokenizer, only_reads=False):
    """The `RWKV` that was asked for, on the backend that was asked for. only_reads: its matrices are not changed."""
    path = named(arguments.model)  # before seconds go by with loading a backend
    choose_engine(arguments.engine)
    from bert4keras_rwkv.models import RWKV

    numbers = {"dtype": arguments.dtype, "strategy": arguments.strategy}
    if only_reads and arguments.dtype in (None, "bfloat16") and not (arguments.strategy or arguments.adapter):
        numbers = {"dtype": arguments.dtype, "quantization": "auto"}
    return RWKV.from_preset(path, tokenizer=tokenizer, kernel=arguments.kernel, **numbers)


def load_to_write(arguments, tokenizer):
    """`load` a model to write text with. A file beside it that is not there is an OSError before seconds go by."""
    for name in ("state", "adapter", "load"):
        if getattr(arguments, name, None) is not None:  # not every command has them all
            os.stat(getattr(arguments, name))
    rwkv = load(arguments, tokenizer, only_reads=True)
    if rwkv.tokenizer is None:
        raise ValueError(f"No vocabulary was found beside '{arguments.model}'. Name one with --tokenizer.")
    return rwkv


def tuned(rwkv, arguments):
    """Take over what `--adapter` names; the RWKVState of `--state`, or None."""
    if arguments.adapter is not None:
        rwkv.load_adapter(arguments.adapter)
    if arguments.state is None:
        return None
    state = rwkv.load_state(arguments.state)
    if state.batch != 1:
        raise ValueError(f"'{arguments.state}' holds the states of {state.batch} texts, and one is written: keep one.")
    return state


def write_stream(pieces, line, before="", interrupts=None):
    """Write a `Stream` of text as it comes, after `before`. interrupts: where these ask for it, it ends.

    Returns the `Clock` that ran along.
    """
    clock = Clock()
    quiet = sys.stdout.isatty()  # the text itself is the progress there
    for piece in pieces if interrupts is None else interrupts.until(pieces):
        clock.tick(pieces.drawn)
        line.clear() if quiet else line.show(clock.summary())
        write(before + piece)
        before = ""
    clock.tick(pieces.drawn)
    line.clear()
    write(before)
    return clock


def write(text):
    """Write to stdout; a terminal acts upon nothing in it."""
    sys.stdout.write(for_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


class Clock:
    """Counts tokens. The rate leaves out what came before the first ones: reading the prompt and compiling."""

    def __init__(self):
        self.tokens, self._before, self._first, self._last = 0, 0, 0.0, 0.0

    def tick(self, tokens):
        """So many tokens there are now."""
        self._last, self.tokens = time.perf_counter(), tokens
        if not self._first:
            self._first, self._before = self._last, tokens

    def summary(self):
        """`12 tokens, 30.1 tokens/s`."""
        seconds = self._last - self._first
        rate = (self.tokens - self._before) / seconds if seconds > 0 else 0.0
        return f"{counted(self.tokens, 'token')}, {rate:.1f} tokens/s"


class StatusLine:
    """One line on a terminal that is rewritten in place; nothing where the stream is no terminal.

    It goes away when the package logs something, which else would stand behind it.
    """

    def __init__(self, stream):
        self._stream = stream
        self._terminal = stream.isatty()
        self._shown = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.clear()

    def show(self, text):
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
            self._shown = True
            logger.addFilter(self._make_room)

    def clear(self):
        self._hide()
        logger.removeFilter(self._make_room)

    def _hide(self):
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

    def _make_room(self, record):
        """A filter that lets every notice pass."""
        self._hide()
        return True
