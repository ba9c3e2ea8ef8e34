"""What cannot be is refused when arguments are read: one line that names the option and the rule, and code 2."""

import argparse
import functools
import re

import pytest

from bert4keras_rwkv.cli import backend, main
from bert4keras_rwkv.cli.arguments import (
    BLOCKS,
    DTYPES,
    KERNELS,
    PEERS,
    READ,
    SAMPLING,
    TRAINING,
    TUNING,
    WRITTEN,
    parser,
)
from bert4keras_rwkv.cli.values import Real, Whole, utf8
from bert4keras_rwkv.evaluation import speed
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.ops.kernels import choose
from bert4keras_rwkv.training.plan import TrainingPlan, Tuning
from bert4keras_rwkv.weights.formats.registry import format_named, formats

pytestmark = pytest.mark.backend_free

NEEDED = {
    "chat": [],
    "serve": [],
    "generate": ["--prompt", "a"],
    "info": ["a"],
    "convert": ["a", "b"],
    "quantize": ["a", "b"],
    "data": ["a", "b"],
    "train": ["a", "b", "--out", "c"],
    "evaluate": ["a"],
    "tune": ["--out", "a"],
    "state": ["a", "--out", "b"],
    "bench": [],
}
BAD = ["", "x", "nan", "inf", "-inf", "1e400", "1.5.0", "9" * 5000]


def options():
    """(command, action) for every option of every command."""
    (commands,) = (one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    for command, its in commands.choices.items():
        for action in its._actions:
            if action.option_strings:
                yield command, action


def of_kind(*kinds):
    found = [(command, one) for command, one in options() if isinstance(one.type, kinds)]
    return pytest.mark.parametrize("command, option", found, ids=lambda one: one if isinstance(one, str) else one.dest)


def refused(command, option, value, capsys):
    """The one line that says so."""
    repeated = [] if option.nargs in (None, "+") else ["1"] * (option.nargs - 1)
    given = [f"{option.option_strings[0]}={value}"] if option.nargs is None else [option.option_strings[0], value]
    with pytest.raises(SystemExit) as ended:
        main([command, *NEEDED[command], *given, *repeated])
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and told.err.count("\n") == 1 and len(told.err) < 250
    assert told.err.startswith(f"bert4keras-rwkv {command}: {option.option_strings[0]}: ")
    return told.err


def test_every_number_has_a_rule():
    """None is read by `int` or `float`, which take what cannot be."""
    assert not [(command, one.dest) for command, one in options() if one.type in (int, float)]
    assert len(list(options())) > 80


@of_kind(Whole)
def test_whole_numbers(command, option, capsys):
    rule = option.type
    for value in (*BAD, "1.5", str(rule.low - 1), str(rule.high + 1), str(2**70)):
        if value.startswith("-") and option.nargs:
            continue  # argparse takes it for an option
        told = refused(command, option, value, capsys)
        assert f"a whole number from {rule.low} to {rule.high} is expected. Received: " in told


@of_kind(Real)
def test_numbers(command, option, capsys):
    for value in (*BAD, "1e39", "-1e39"):
        if value.startswith("-") and option.nargs:
            continue
        assert ": a finite number" in refused(command, option, value, capsys)
    if option.type.low == 0:
        assert "from 0" in refused(command, option, "-1", capsys) or option.type.above
    if option.type.above:
        assert "above 0" in refused(command, option, "0", capsys)


@pytest.mark.parametrize("command, option", [(c, o) for c, o in options() if o.type is utf8], ids=str)
def test_texts(command, option, capsys):
    """As Python hands over bytes that are no UTF-8."""
    assert "text in UTF-8 is expected" in refused(command, option, "a\udcff", capsys)


def test_the_help_names_what_there_is():
    """Formats of weights, dtypes, kernels, programs: lists that stand there too, for the command line loads little."""
    assert set(WRITTEN) == {known.name for known in formats() if known.write}
    assert set(READ) == {known.name for known in formats()}
    assert sorted(format_named("gguf").dtypes) == sorted((*DTYPES, *BLOCKS))
    assert choose.KERNELS == KERNELS
    assert speed.PEERS == PEERS


@pytest.mark.parametrize("command", NEEDED)
def test_a_letter_in_the_help_is_the_one_of_its_option(command):
    """N stands for a whole number, X for any other; a text that says N speaks of its own."""
    for name, option in options():
        if name == command and isinstance(option.type, Whole | Real) and option.nargs is None:
            letters = {"N": Whole, "X": Real, "B": Whole, "T": Whole}
            assert isinstance(option.type, letters[option.metavar])
            assert set(re.findall(r"\b[A-Z]\b", option.help)) <= {option.metavar}


SAMPLES = ["-1", "0", "1", "2", "3", "5", "0.5", "1.5", "1e-30"]


@pytest.mark.parametrize("table", ["Sampling", "TrainingPlan", "Tuning"])
def test_the_parser_takes_what_the_library_takes(table):
    """Each rule stands in two places, for the command line loads nothing before it knows."""
    numbers, make = {
        "Sampling": (SAMPLING, Sampling),
        "TrainingPlan": (
            TRAINING,
            lambda **one: TrainingPlan(
                **{**{n: d for n, (_, d, _) in TRAINING.items()}, "steps": 20, "warm_up": 10, **one}
            ),
        ),
        "Tuning": (TUNING, functools.partial(Tuning, mode="lora")),
    }[table]
    for name, (rule, _, _) in numbers.items():
        for sample in SAMPLES:
            if name == "steps" and table == "TrainingPlan" and sample in SAMPLES[2:]:
                continue  # no more than the warm-up
            try:
                given = rule(sample)
            except argparse.ArgumentTypeError:
                given = None
            value = int(sample) if isinstance(rule, Whole) and sample.lstrip("-").isdigit() else float(sample)
            if given is None:
                with pytest.raises(ValueError, match=f"`{name}`"):
                    make(**{name: value})
            else:
                make(**{name: given})


@pytest.mark.parametrize("command", NEEDED)
def test_what_else_is_wrong_is_one_line(command, capsys):
    """A missing argument, an option that does not exist, a value that is no choice."""
    missing = [[]] if NEEDED[command] else []
    for arguments in (*missing, [*NEEDED[command], "--nonsense"], [*NEEDED[command], "--debug=1"]):
        with pytest.raises(SystemExit) as ended:
            main([command, *arguments])
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.count("\n") == 1 and "--help says more" in told


def test_what_nobody_foresaw_is_one_line(monkeypatch, capsys):
    """With its kind; `--debug` shows where."""
    from bert4keras_rwkv.cli import info

    def wrong(arguments):
        raise KeyError("a")

    monkeypatch.setattr(info, "run", wrong)
    assert main(["info", "a"]) == 1
    assert capsys.readouterr().err == "bert4keras-rwkv info: KeyError: 'a' (--debug shows where)\n"
    with pytest.raises(KeyError):
        main(["info", "a", "--debug"])


def test_tensorflow_keeps_its_advice_to_itself(monkeypatch, caplog):
    """On functions that were compiled again."""
    import logging

    monkeypatch.setenv("KERAS_BACKEND", "")
    logger = logging.getLogger("tensorflow")
    before = list(logger.filters)
    backend.choose_engine("tensorflow")
    logger.warning("5 out of the last 5 calls to %s triggered tf.function retracing.", "f")
    logger.warning("Something else")
    logger.filters[:] = before
    assert caplog.messages == ["Something else"]
