"""What a file says is parsed with bounds, and shown short and harmless."""

import json

import pytest

from bert4keras_rwkv.data.sources import parts_of, read_jsonl
from bert4keras_rwkv.evaluation.lambada import read_lambada
from bert4keras_rwkv.untrusted import DEEPEST, for_terminal, parse_json, printable, shown
from bert4keras_rwkv.weights import WeightsError

pytestmark = pytest.mark.backend_free


def nested(depth, inside=None):
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe{}", b'{"a": 1, "a": 2}', b"[" * 100_000, json.dumps(nested(DEEPEST + 1)), "9" * 5000, "\0"],
)
def test_what_is_no_json_is_one_error(text):
    with pytest.raises(ValueError, match=r"^The file is no JSON") as error:
        parse_json(text, "The file")
    assert len(str(error.value)) < 500


def test_a_number_of_thousands_of_digits():
    """It is refused in our words; Python's are about a setting of the interpreter."""
    with pytest.raises(ValueError, match=r"^It is no JSON: it holds a whole number of 5000 digits\.$"):
        parse_json("[" + "7" * 5000 + "]", "It")


def test_json_of_a_sensible_depth():
    assert parse_json(json.dumps(nested(DEEPEST)), "The file") == nested(DEEPEST)
    assert parse_json('{"a": 1, "a": 2}', "The file", once=False) == {"a": 2}


def test_a_message_is_short_and_does_nothing_to_a_terminal():
    """It keeps its beginning and its end, where the way out stands."""
    message = printable("begin\x1b[31m\u202e\ud800\n" + "x" * 10_000_000 + "\x07end")
    assert len(message) < 2000 and message.replace("\n", "").isprintable()
    assert message.startswith("begin\\x1b[31m\\u202e\\ud800\nxxx") and message.endswith("x\\x07end")
    assert str(WeightsError("a\x1bb")) == "a\\x1bb"


def test_a_text_for_a_terminal_keeps_what_scripts_need():
    """Chinese, Hebrew with its marks, joined emoji and Persian, tabs; but nothing that a terminal would act upon."""
    fine = "中文\tשָׁלוֹם\u200f\n👩\u200d👧 می\u200cخواهم\u00ad"
    assert for_terminal(fine) == fine
    assert for_terminal("a\x1b[2J\x9b\r\x00\u202eb\u2028\ud800") == r"a\x1b[2J\x9b\r\x00\u202eb\u2028\ud800"


@pytest.mark.parametrize(
    "value", ["x" * 10_000_000, nested(500), {"a" * 9999: {i: [i] * 99 for i in range(9999)}}, 10**400]
)
def test_a_value_is_shown_by_its_beginning(value):
    assert len(shown(value)) < 1000


@pytest.mark.parametrize("line", ["[" * 100_000, '{"messages": ' + "[" * 900 + "]" * 900 + "}", '{"text": ' + "[" * 70])
@pytest.mark.parametrize(
    "read", [lambda path: list(map(parts_of, read_jsonl(path))), lambda path: list(read_lambada(path))]
)
def test_a_deep_line_is_named(tmp_path, line, read):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a b"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl', line 2 is no JSON"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "turn", [{"role": ["user"], "content": "x" * 9999}, nested(60), {"role": "user", "content": {"x": 1}}]
)
def test_a_strange_turn_is_shown_short(tmp_path, turn):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [turn]}))
    with pytest.raises(ValueError, match=r"line 1: turn 0 has a `role`") as error:
        list(map(parts_of, read_jsonl(tmp_path / "a.jsonl")))
    assert len(str(error.value)) < 1000
