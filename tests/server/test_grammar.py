"""Grammars: whatever is drawn from the ids that may come is what was asked for, as json and re find it."""

import json
import re
import time

import jsonschema
import numpy as np
import pytest

from bert4keras_rwkv.server.constraints import ChatWanted, CompletionWanted
from bert4keras_rwkv.server.grammar import Grammars, Limits
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.tools import tools_of
from bert4keras_rwkv.templates import template_of
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, PileTokenizer
from bert4keras_rwkv.tokenizers.vocabulary import world_path
from tests.server.test_tools import NAMES, WEATHER, read, wanted

pytestmark = pytest.mark.backend_free
BYTES = {number: bytes([number - 1]) for number in range(1, 257)}
HALVES = BYTES | {300: "你".encode()[:2], 301: "你".encode()[2:] + "好".encode()[:1], 302: b'{"', 303: b"\n\n"}
PATIENT = Limits(seconds=60)  # machines of tests are slow at times
ROWS = {"world": 65536 + 40, "halves": 330}  # more than the vocabulary has
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["你好", 'b"c', None]}, "maxItems": 3},
        "next": {"anyOf": [{"$ref": "#/$defs/end"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "next"],
    "additionalProperties": False,
    "$defs": {"end": {"type": "object", "additionalProperties": False}},
}
PARAMETERS = {"weather": WEATHER["parameters"], "now": {"const": {}}}
SUM = 'start: product ("+" product)*\nproduct: NUMBER ("*" NUMBER){0,2}\nNUMBER: /[1-9][0-9]{0,2}/'


@pytest.fixture(scope="module")
def tokenizers():
    return {"world": RWKV_TOKENIZER(world_path()), "halves": RWKV_TOKENIZER.from_entries(HALVES)}


@pytest.fixture(scope="module")
def grammars(tokenizers):
    return {name: Grammars(one, ROWS[name], (0,), PATIENT) for name, one in tokenizers.items()}


def allowed(constraint):
    """The ids that may come."""
    return np.flatnonzero(np.unpackbits(constraint.mask().view("uint8"), bitorder="little")).tolist()


def drawn(constraint, tokenizer, seed, most=400):
    """A text of ids drawn from those that may come, an end sooner or later; None if it has none after `most`."""
    generator, ids = np.random.default_rng(seed), []
    while not constraint.ended and len(ids) < most:
        may = allowed(constraint)
        if 0 in may and (may == [0] or generator.random() < 0.2):
            return tokenizer.decode_bytes(ids).decode()  # whole characters
        token = int(generator.choice([one for one in may if one]))
        constraint.take(token)
        ids.append(token)
    return tokenizer.decode_bytes(ids).decode() if constraint.ended else None


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    ("kind", "source", "fits"),
    [
        ("json_schema", PERSON, lambda text: jsonschema.validate(json.loads(text), PERSON) is None),
        ("regex", r"(你好|[一-龥]{2,3}|é{1,4})-\d{2}", re.compile(r"(你好|[一-龥]{2,3}|é{1,4})-\d{2}").fullmatch),
        ("regex", "[ab]*c?", re.compile("[ab]*c?").fullmatch),
        ("lark", SUM, re.compile(r"[1-9]\d{0,2}([+*][1-9]\d{0,2})*").fullmatch),
    ],
)
def test_what_is_drawn_is_what_was_asked_for(grammars, tokenizers, name, kind, source, fits):
    factory, texts = grammars[name].compiled(kind, source), set()
    for seed in range(30):
        text = drawn(factory(), tokenizers[name], seed)
        texts.add(text)
        assert text is None or fits(text), text
    assert len(texts - {None}) > 10  # answers of one grammar know nothing of each other


def test_json_has_no_blank_line_and_may_have_text_before_it(grammars, tokenizers):
    """A blank line ends a turn in many templates."""
    texts = [
        drawn(grammars["halves"].compiled("json_object", None, before=" ")(), tokenizers["halves"], seed, 200)
        for seed in range(40)
    ]
    texts = [text for text in texts if text is not None]
    assert texts and all(text.startswith(" {") and "\n\n" not in text for text in texts)
    assert all(isinstance(json.loads(text), dict) for text in texts)


@pytest.mark.parametrize("name", ROWS)
def test_ids_without_text_never_come_and_an_end_only_where_it_may(grammars, tokenizers, name):
    silent = set(tokenizers[name].without_text(ROWS[name])) | {0}
    constraint = grammars[name].compiled("lark", "start: <[*]>* ANY\nANY: /(.|\\n)*/")()
    assert set(allowed(constraint)) == set(range(ROWS[name])) - silent | {0}
    constraint = grammars[name].compiled("regex", "ab?")()
    assert 0 not in allowed(constraint)
    constraint.take(tokenizers[name].encode("a")[0])
    assert set(allowed(constraint)) == {0, *tokenizers[name].encode("b")} and not constraint.ended
    constraint.take(tokenizers[name].encode("b")[0])
    assert constraint.ended and allowed(constraint) == [0]


def test_a_vocabulary_without_an_end(tokenizers):
    made = Grammars(tokenizers["halves"], 303, ()).compiled("regex", "a?")
    assert allowed(made()) == tokenizers["halves"].encode("a")
    with pytest.raises(ValueError, match="No token fits"):
        Grammars(tokenizers["halves"], 303, ()).compiled("regex", "")().mask()


@pytest.mark.oracle
def test_byte_level_bpe(oracles):
    tokenizer = PileTokenizer(oracles / "tokenizer" / "20B_tokenizer.json")
    factory = Grammars(tokenizer, 50432, (tokenizer.end_token,)).compiled("regex", "[你们é]{3}")
    assert all(re.fullmatch("[你们é]{3}", drawn(factory(), tokenizer, seed)) for seed in range(10))


def test_a_wrong_token_ends_this_answer_and_no_other(grammars, tokenizers):
    factory = grammars["halves"].compiled("regex", "[ab]+")
    one, other = factory(), factory()
    with pytest.raises(ValueError, match="cannot be followed"):
        one.take(tokenizers["halves"].encode("c")[0])
    with pytest.raises(ValueError, match="cannot be followed"):
        one.mask()
    assert allowed(other) == tokenizers["halves"].encode("ab")
    other.take(tokenizers["halves"].encode("a")[0])
    assert 0 in allowed(other)


def test_an_answer_in_a_form_or_a_call_instead(grammars, tokenizers):
    """As clients want it that offer functions and say what the last answer is."""
    g1, schema, found = template_of("g1"), {"enum": ["yes", "no"]}, set()
    now = [{"type": "function", "function": {"name": "now"}}]
    call = tools_of(wanted(tool_choice="auto", tools=now), g1).grammar(g1)
    factory = grammars["halves"].compiled("json_schema", schema, before=" ", instead=call)
    for seed in range(20):
        content, calls, _ = read([drawn(factory(), tokenizers["halves"], seed)])
        assert (content in ('"yes"', '"no"')) != bool(calls)
        found.add(bool(calls))
    assert found == {True, False}


def test_what_is_not_known_in_a_schema_is_left_out_where_that_is_asked_for(grammars):
    for schema in ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"type": "integer", "not": {"const": 3}}):
        with pytest.raises(ApiError, match=r"oneOf|not"):
            grammars["halves"].compiled("json_schema", schema)
        assert allowed(grammars["halves"].compiled("json_schema", schema, lenient=True)())
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}
    assert CompletionWanted.model_validate({"prompt": "a", "response_format": form}).wish.lenient


def test_a_call_is_of_a_function_that_is_there(grammars, tokenizers):
    g1 = template_of("g1")
    for parallel in (True, False):
        tools = tools_of(wanted(tool_choice="required", parallel_tool_calls=parallel), g1)
        factory = grammars["halves"].compiled("lark", tools.grammar(g1), "tools")
        for seed in range(25):
            text = drawn(factory(), tokenizers["halves"], seed, 600)
            if text is None:
                continue
            content, calls, _ = read([text], opening=g1.mode("call").opening)
            assert not content and calls and (parallel or len(calls) == 1)
            for name, arguments in calls:
                assert name in NAMES
                jsonschema.validate(json.loads(arguments), PARAMETERS[name])


REFUSED = [
    ("json_schema", {"enum": []}, "Unsatisfiable"),
    ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
    ("json_schema", {"anyOf": [{"$ref": "#"}]}, "nothing satisfies it"),
    ("json_schema", {"not": {}}, 'Unimplemented keys: ["not"]'),
    ("json_schema", {"type": "strin"}, "Invalid type"),
    ("json_schema", {"$ref": "http://example.org/a"}, "not present"),
    ("regex", "(", "unclosed group"),
    ("regex", "[^\\s\\S]", "nothing satisfies it"),
    ("regex", "\ud800", "surrogates"),
    ("regex", "a" * 200_000, "200082 bytes, and may have 131072"),
    ("lark", "start: thing", 'unknown name: "thing"'),
    ("lark", 'root ::= "a"', "GBNF"),
    ("lark", "start: <|end|>", "panic"),
    # What would take a minute, or the server with it.
    ("json_schema", {"type": "integer", "multipleOf": 10_000_019}, "more than 2 seconds"),
    ("lark", "".join(f"start{n or ''}: start{n + 1}\n" for n in range(5000)) + 'start5000: "a"', "too deep"),
    ("json_schema", {"$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(3000)}, "$ref": "#/$defs/0"}, "too"),
]


@pytest.mark.parametrize(("kind", "source", "message"), REFUSED)
def test_what_cannot_be_compiled_is_a_400(tokenizers, kind, source, message):
    grammars = Grammars(tokenizers["halves"], 303, (0,), Limits(seconds=2 if "seconds" in message else 60))
    with pytest.raises(ApiError) as raised:
        grammars.compiled(kind, source, "field")
    error = raised.value.body["error"]
    assert raised.value.status == 400 and error["param"] == "field" and message in error["message"]


def test_a_grammar_that_branches_without_end_ends_its_answer(grammars, tokenizers):
    """And no step takes long: half a second of computing is ten times what the slowest takes."""
    constraint, slowest = grammars["halves"].compiled("lark", 'start: start start | "a" |')(), 0
    with pytest.raises(ValueError, match="cannot be followed"):
        for _ in range(1000):
            before = time.thread_time()
            constraint.mask()
            constraint.take(tokenizers["halves"].encode("a")[0])
            slowest = max(slowest, time.thread_time() - before)
    assert slowest < 0.5


def test_the_same_grammar_is_tried_once(tokenizers, monkeypatch):
    grammars = Grammars(tokenizers["halves"], 303, (0,), PATIENT)
    grammars.compiled("json_schema", PERSON)
    monkeypatch.setattr("subprocess.run", None)
    assert allowed(grammars.compiled("json_schema", PERSON)()) == [tokenizers["halves"].encode("{")[0], 302]


@pytest.mark.parametrize(
    ("fields", "wish"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ("json_object", {}, "response_format")),
        (
            {"response_format": {"type": "json_object", "schema": {"a": 1}}},
            ("json_schema", {"a": 1}, "response_format"),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}},
            ("json_schema", {"a": 1}, "response_format"),
        ),
        ({"guided_json": '{"a": 1}'}, ("json_schema", {"a": 1}, "guided_json")),
        ({"guided_regex": "a"}, ("regex", "a", "guided_regex")),
        ({"guided_choice": ["a", 'b"']}, ("lark", 'start: "a" | "b\\""', "guided_choice")),
        ({"grammar": "start:"}, ("lark", "start:", "grammar")),
        ({"structured_outputs": {"regex": "a"}}, ("regex", "a", "structured_outputs.regex")),
        ({"structured_outputs": {"json": {}}}, ("json_schema", {}, "structured_outputs.json")),
    ],
)
def test_the_fields_that_ask_for_a_form(fields, wish):
    for kind, given in ((CompletionWanted, {"prompt": "a"}), (ChatWanted, {"messages": [{"role": "user"}]})):
        assert kind.model_validate(given | fields).wish == (wish and (*wish, False))
    with pytest.raises(ApiError, match="`regex`, `grammar`"):
        CompletionWanted.model_validate({"prompt": "a", "regex": "a", "grammar": "b"}).wish  # noqa: B018
