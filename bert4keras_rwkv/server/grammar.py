"""Grammars: which ids may come next, so that a text is JSON of a schema, or fits a regular expression or a grammar."""

import functools
import json
import subprocess
import sys
import threading
from typing import NamedTuple

import llguidance
import numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from bert4keras_rwkv.generation.rows import WORD, words
from bert4keras_rwkv.server import grammar_trial
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.untrusted import shown

# Between the parts of JSON: no blank line, at which a turn ends in many templates, and nothing that has no end.
SPACES = r" |\n[ \t]{0,16}"
# What one token may cost: some ten milliseconds, in which the others wait.
STEP = {"max_items_in_row": 2000, "step_max_items": 50_000, "step_lexer_fuel": 100_000, "max_lexer_states": 20_000}
LIBRARY = {**STEP, "verbose_errors": False}


class Limits(NamedTuple):
    """size: bytes of a grammar. seconds: to compile it. trials: compiled at once. known: grammars whose trial is
    remembered.
    """

    size: int = 1 << 17
    seconds: float = 3.0
    trials: int = 2
    known: int = 256


LIMITS = Limits()


class Grammars:
    """Compiles grammars over a vocabulary.

    tokenizer: a `Tokenizer`. vocab_size: rows of the model; ids without text never come. ends: ids that end a text,
    which come where the grammar may stop, and only there.
    """

    def __init__(self, tokenizer, vocab_size, ends, limits=LIMITS):
        self.limits = limits
        vocabulary = _Vocabulary(tokenizer, vocab_size, ends)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), n_vocab=vocab_size + 1, eos_token=[vocab_size]
        )
        silent = set(vocabulary.special_token_ids)
        self._written = _bits((token for token in range(vocab_size) if token not in silent), vocab_size)
        self._ends = _bits(ends, vocab_size)
        self._trials = threading.BoundedSemaphore(limits.trials)
        self._problem = functools.lru_cache(limits.known)(self._tried)

    def compiled(self, kind, source, field="response_format", *, before="", lenient=False, instead=None):
        """A function that returns a `Constraint` for an answer. It takes a while, and lets other threads run.

        kind, source: 'json_object' and anything, 'json_schema' and a dict, 'regex' or 'lark' and a str. field: of the
        request, for errors. before: text that comes first. lenient: what is not known in a schema is left out, instead
        of refused. instead: a Lark grammar that an answer may follow just as well, without `before`. Raises ApiError.
        """
        try:
            grammar = _library_form(_body(kind, source, lenient), before, instead)
        except ValueError as error:
            raise ApiError(400, f"`{field}`: {error}", field) from error
        if len(grammar) > self.limits.size:
            raise ApiError(400, f"`{field}` has {len(grammar)} bytes, and may have {self.limits.size}.", field)
        wrong = self._problem(grammar, field)
        if not wrong:
            # One for each request: copies share their lexer, and with it its limits.
            matcher = grammar_trial.matcher(self._tokenizer, grammar, LIBRARY)
            wrong = grammar_trial.problem(matcher)
        if wrong:
            raise ApiError(400, f"`{field}` is no {_name(kind)} that can be used here: {wrong}", field)
        return lambda: Constraint(matcher.deep_copy(), self._tokenizer, self._written, self._ends)

    def _tried(self, grammar, field):
        """What is wrong with a grammar, "" for nothing, as another process finds out."""
        if not self._trials.acquire(timeout=self.limits.seconds):
            message = "Too many new grammars at once. Ask again a little later."
            raise ApiError(429, message, field, "rate_limit_exceeded", {"Retry-After": "1"})
        try:
            program = [sys.executable, "-P", grammar_trial.__file__]
            asked = json.dumps({"grammar": grammar, "limits": LIBRARY, "seconds": 2 * self.limits.seconds})
            done = subprocess.run(program, input=asked, capture_output=True, text=True, timeout=self.limits.seconds)
        except subprocess.TimeoutExpired as error:
            message = f"`{field}` takes more than {self.limits.seconds:g} seconds to compile. Make it simpler."
            raise ApiError(400, message, field) from error
        finally:
            self._trials.release()
        return json.loads(done.stdout) if done.returncode == 0 else "it is too deep or too large to compile."


class Constraint:
    """What may come next in one answer. Raises ValueError where it cannot go on."""

    def __init__(self, matcher, tokenizer, written, ends):
        self._matcher, self._tokenizer, self._written, self._ends = matcher, tokenizer, written, ends

    def mask(self):
        """A bit for each id that may come, int32 (words,): that of id i is bit i % 32 of word i // 32."""
        found = allocate_token_bitmask(1, self._tokenizer.vocab_size)
        fill_next_token_bitmask(self._matcher, found)
        self._check()
        mask = found[0, : len(self._written)] & self._written
        if self._matcher.is_accepting():
            mask |= self._ends
        if not mask.any():
            raise ValueError("No token fits the grammar here.")
        return mask

    def take(self, token):
        """An id that is no end has come."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def ended(self):
        """Whether nothing may follow but an end."""
        return self._matcher.is_stopped()

    def _check(self):
        if self._matcher.is_error():
            raise ValueError(f"The grammar cannot be followed: {grammar_trial.problem(self._matcher)}")


class _Vocabulary:
    """A vocabulary as llguidance asks for one, with an end of its own behind the ids of the model."""

    bos_token_id = None

    def __init__(self, tokenizer, vocab_size, ends):
        self._tokenizer, self.eos_token_id = tokenizer, vocab_size
        self.special_token_ids = sorted({*tokenizer.without_text(vocab_size), *ends, vocab_size})
        silent = set(self.special_token_ids)
        self.tokens = [b"" if token in silent else tokenizer.decode_bytes(token) for token in range(vocab_size + 1)]

    def __call__(self, data):
        return self._tokenizer.encode_bytes(data)


def _bits(ids, vocab_size):
    """A bit for each id that is there, int32 (words,)."""
    flags = np.zeros(words(vocab_size) * WORD, bool)
    flags[list(ids)] = True
    return np.packbits(flags, bitorder="little").view("<i4").astype("int32")


def _name(kind):
    return {"regex": "regular expression", "lark": "Lark grammar"}.get(kind, "JSON schema")


def _body(kind, source, lenient):
    """One grammar of those that llguidance takes."""
    if kind == "json_object":
        return {"json_schema": spaced({"type": "object"})}
    if kind == "json_schema":
        return {"json_schema": spaced(source, lenient)}
    if kind == "regex":
        return json.loads(llguidance.LLMatcher.grammar_from_regex(source))["grammars"][0]
    if kind != "lark":
        raise ValueError(f"a grammar is of 'json_object', 'json_schema', 'regex' or 'lark'. Received: {shown(kind)}.")
    if "::=" in source:
        raise ValueError('this looks like GBNF of llama.cpp. A Lark grammar is expected: `start: "yes" | "no"`.')
    return {"lark_grammar": source}


def _library_form(body, before, instead):
    """All of a grammar as llguidance takes it, JSON."""
    first = "start: " + (f"{json.dumps(before)} " if before else "") + "@body"
    grammars = [{**body, "name": "body"}]
    if instead is not None:
        first += " | @instead"
        grammars.append({"lark_grammar": instead, "name": "instead"})
    return json.dumps({"grammars": [{"lark_grammar": first}, *grammars] if before or instead else grammars})


def spaced(schema, lenient=False):
    """A JSON schema, a dict, with how much space there may be. lenient: keywords that are not known are left out, and
    `oneOf` may be several.
    """
    options = {"whitespace_pattern": SPACES, "lenient": lenient, "coerce_one_of": lenient}
    return {**schema, "x-guidance": options}
