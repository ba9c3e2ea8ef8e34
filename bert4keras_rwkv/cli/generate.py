"""`generate`: text on stdout as it is written, what happens meanwhile on stderr."""

import sys
import time

from bert4keras_rwkv.cli.arguments import SAMPLING, UsageError
from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.tokenizers import load_tokenizer
from bert4keras_rwkv.weights.checkpoint import named


def run(arguments):
    """Load the model, write text, and say how many tokens it took and how fast they came."""
    sampling = chosen_sampling(arguments)
    prompt = prompt_text(arguments.prompt)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another one
    with StatusLine(sys.stderr) as line:
        line.show("loading the model")
        rwkv = load(arguments, tokenizer, only_reads=True)
        if rwkv.tokenizer is None:
            raise ValueError(f"No vocabulary was found beside '{arguments.model}'. Name one with --tokenizer.")
        state = tuned(rwkv, arguments)
        stops = [stop for stop in arguments.stop if stop]
        options = {"sampling": sampling, "seed": arguments.seed, "state": state, "stop_texts": stops, "as_text": True}
        pieces = rwkv.stream(
            rwkv.tokenizer.encode(prompt), arguments.max_length, max_new_tokens=arguments.max_new_tokens, **options
        )
        line.show("reading the prompt")
        clock = write_stream(pieces, line, prompt if arguments.echo else "")
    write("\n")
    print(clock.summary(), file=sys.stderr)


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


def write_stream(pieces, line, before=""):
    """Write a `Stream` of text as it comes, after `before`. Returns the `Clock` that ran along."""
    clock = Clock()
    quiet = sys.stdout.isatty()  # the text itself is the progress there
    for piece in pieces:
        clock.tick(pieces.drawn)
        line.clear() if quiet else line.show(clock.summary())
        write(before + piece)
        before = ""
    clock.tick(pieces.drawn)
    line.clear()
    write(before)
    return clock


def write(text):
    sys.stdout.write(text)
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
        return f"{self.tokens} tokens, {rate:.1f} tokens/s"


class StatusLine:
    """One line on a terminal that is rewritten in place; nothing where the stream is no terminal."""

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

    def clear(self):
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
