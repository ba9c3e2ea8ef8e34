"""Templates are data, checked, and training texts and chat prompts come out of the same turns."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from bert4keras_rwkv.data.encoding import encode_documents
from bert4keras_rwkv.templates import Template, conversation, read_template, template_for, template_names, template_of
from bert4keras_rwkv.templates.files import from_values, line_of
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.tokenizers.vocabulary import world_path

pytestmark = pytest.mark.backend_free

TURNS = [("user", "What is a newt?"), ("assistant", "A small animal.\n\nIt swims."), ("user", "And a toad?")]
NAMES = ["friends-en", "friends-ja", "friends-zh", "g1", "instruction", "pile", "qa", "world"]


@pytest.fixture(scope="module")
def tokenizer():
    return RWKV_TOKENIZER(world_path())


def ids_of(tokenizer, parts):
    return [one for part in parts for one in tokenizer.encode(part.text)]


def text_of(parts):
    return "".join(part.text for part in parts)


def test_what_there_is():
    assert template_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_values_and_template_are_the_same(name):
    template = template_of(name)
    assert from_values(json.loads(json.dumps(template.to_dict())), name) == template and template.name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_reads_what_training_has_read(tokenizer, name):
    """Up to every reply the ids are the same, and so they are after it."""
    template = template_of(name)
    turns = [{"role": role, "content": text} for role, text in TURNS]
    (document,) = encode_documents([turns], tokenizer) if name == "world" else [None]
    whole = ids_of(tokenizer, conversation(turns, template=name))
    assert document is None or document.ids.tolist() == whole
    read = template.opening(dialogue=False)
    for role, text in TURNS:
        if role == "assistant":
            asked = ids_of(tokenizer, [*read, *template.turn(role)])
            assert asked == whole[: len(asked)]
        read += template.turn(role, text)
    assert ids_of(tokenizer, read) == whole


@pytest.mark.parametrize("mode", list(template_of("g1").modes))
def test_what_a_reply_has_to_begin_with_is_the_beginning_of_a_training_text(tokenizer, mode):
    template = template_of("g1")
    said = {"fake": "<think>\n</think>\nYes.", "off": "Yes.", "call": '```json\n{"name": "f"}\n```'}
    reply = said.get(mode, "<think>\nHm.\n</think>\nYes.")
    asked = ids_of(tokenizer, template.turn("assistant", mode=mode))
    whole = ids_of(tokenizer, template.turn("assistant", reply))
    assert whole[: len(asked)] == asked
    assert template.split(reply)[0] == ("Hm." if mode in ("short", "on", "long") else "")
    assert mode == "call" or template.split(reply)[1] == "Yes."


def test_the_forms_of_released_models():
    """As RWKV7-G1x-templates.txt of RWKV-LM and ChatRWKV's `+i` and `+qq` have them."""
    for name, mode, text in (
        ("world", None, "User: q\n\nAssistant:"),
        ("g1", "off", "User: q\n\nAssistant:"),
        ("g1", "on", "User: q\n\nAssistant: <think"),
        ("g1", "fake", "User: q\n\nAssistant: <think>\n</think"),
        ("g1", "short", "User: q (think a bit)\n\nAssistant: <think"),
        ("g1", "long", "User: q (think a lot)\n\nAssistant: <think"),
        ("qa", None, "Q: q\nA:"),
        ("instruction", None, "# Instruction:\nq\n\n# Response:\n"),
        ("friends-zh", None, "小明：q\n\n小雨："),
    ):
        template = template_of(name)
        assert text_of(template.turn("user", "q", mode) + template.turn("assistant", mode=mode)) == text
    g1 = template_of("g1")
    system = g1.functions(["weather(city: string)"])
    assert text_of(g1.turn("system", system)) == (
        "System: Tools:\n- weather(city: string)\nReturn only a JSON function call.\n\n"
    )
    assert text_of(g1.turn("tool", "{7}")) == "User: Function output:\n{7}\n\n"


def test_what_is_said_is_cleaned():
    world = template_of("world")
    assert world.clean("\u3000 a\r\n\r\n \t\r\nb\rc\x00 \u3000\n") == "a\nb\nc\x00"
    assert template_of("instruction").clean("a\r\n\r\nb ") == "a\n\nb"
    assert text_of(world.turn("user", "{text} {user}")) == "User: {text} {user}\n\n"


def test_which_template_fits():
    assert template_for("rwkv7-g1d-0.4b-20260210-ctx8192", None, 65536) == "g1"
    assert template_for("RWKV-x060-World-1B6", None, 65536) == "world"
    assert template_for("RWKV-4-Raven-7B", None, 50277) == "pile"
    assert template_for("anything", "friends-ja", 65536) == "friends-ja"
    assert template_for() == "world"


def test_a_template_that_is_said_and_not_known_is_said(caplog):
    assert template_for("model", "../x", 65536) == "world"
    assert "'../x', which is not known" in caplog.text


def test_what_a_template_does_not_have():
    for wrong, said in (
        (lambda: template_of("qa").turn("system", "x"), "no form for what the 'system' says. It has: user, assistant"),
        (lambda: template_of("world").mode("on"), "has the modes: none. Received: mode='on'"),
        (lambda: template_of("world").functions(["f()"]), "knows no functions"),
        (lambda: template_of("no-such"), "one of friends-en, .*Received: 'no-such'"),
        (
            lambda: conversation([{"role": "tool", "content": "x"}]),
            "turn 0 .*one of system, user, human, assistant, gpt",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


GOOD = """{
  "name": "mine",
  "names": {"user": "Ann",
            "assistant": "Ben"},
  "user": "{user}{mark} {text}\\n\\n",
  "assistant": "{assistant}{mark}",
  "reply": " {text}\\n\\n",
  "stop": ["\\n\\n"],
  "dialogue": [{"role": "user", "content": "Hi"},
               {"role": "assistant",
                "content": "Hi, {user}"}],
  "modes": {"on": {},
            "slow": {"message": "{text} (slowly)"}}
}
"""


def test_ones_own_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(GOOD, "utf-8-sig")
    template = read_template(path)
    assert template_of(str(path)) == template
    text = text_of(template.opening() + template.turn("user", "Go", "slow") + template.turn("assistant"))
    assert text == "Ann: Hi\n\nBen: Hi, Ann\n\nAnn: Go (slowly)\n\nBen:"


@pytest.mark.parametrize("document", ["chat.md", "zh/chat.md"])
def test_the_file_that_the_guide_shows_is_one(document):
    text = (Path(__file__).parents[1] / "docs" / document).read_text("utf-8")
    values = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert from_values(values, document).name == "mine"
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    assert {field.name for field in dataclasses.fields(Template)} <= named


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('  "reply": " {text}\\n\\n",\n', "", r"line 1: the field `reply` is missing. .*user, assistant, reply, stop"),
        ('"reply": " {text}\\n\\n"', '"reply": " {text}"', "line 7: something stands behind {text}"),
        ('["\\n\\n"]', '["\\n---"]', r"line 7: behind {text} stands what ends a reply, one of `stop`: '\\n---'"),
        ('"user": "{user}{mark} {text}', '"user": "{user}{mark} ', "line 5: `user` holds {text} once"),
        ('"assistant": "{assistant}{mark}"', '"assistant": "{bot}:"', "line 6: `assistant` holds {bot}"),
        ('"assistant": "Ben"', '"assistant": 3', "line 4: `assistant` is a text, not empty. Received: 3"),
        ('["\\n\\n"]', '["a",\n ""]', "line 9: `stop[1]` is a text"),
        ('["\\n\\n"]', "[]", "line 8: `stop` is a list"),
        ('"content": "Hi, {user}"', '"content": null', "line 11: `content` is a text"),
        ('{"role": "assistant",', '{"role": "robot",', "line 10: a turn has a `role`, one of user, assistant"),
        ("{text} (slowly)", "slowly", r"line 13: `message` holds {text} once"),
        ('"on": {}', '"on": {"a": 1}', "line 12: a mode is an object with message and opening"),
        ('"name": "mine"', '"name": "a/b"', "line 2: a name has letters"),
        ('"name": "mine"', '"title": "a", "name": "b"', "line 2: a template has no field 'title'"),
        ('"name": "mine",', '"name": "mine"', "is no JSON: .*line 3"),
        ('"name": "mine",', '"name": "mine", "name": "x",', "'name' comes twice"),
        ('"name": "mine"', '"name": "mine", "fold": 1', "line 2: `fold` is true or false"),
        ('"name": "mine"', '"name": "mine", "begin": null', "line 2: `begin` is a text"),
        ('"name": "mine"', '"name": "mine", "mark": "\\ud800"', "line 2: `mark` holds half of a surrogate pair"),
        ('"name": "mine"', '"name": "mine", "thought": ["<t>"]', "line 2: `thought` is two texts"),
        (GOOD, "[]", "line 1: a template is a JSON object"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, old, new, said):
    assert GOOD.count(old) >= 1
    path = tmp_path / "mine.json"
    path.write_text(GOOD.replace(old, new, 1), "utf-8")
    with pytest.raises(ValueError, match="mine.json'.*" + said.replace("[", r"\[")):
        read_template(path)


def test_a_file_that_is_absent_is_said_to_be(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file '.*nix\.json' to read a template from"):
        template_of(tmp_path / "nix.json")


def test_files_that_are_none(tmp_path):
    (tmp_path / "a").write_bytes(b'{"name": "\xff"}')
    (tmp_path / "b").write_text(" " * (1 << 21))
    for name, said in (("a", "no UTF-8"), ("b", "far more than a template")):
        with pytest.raises(ValueError, match=said):
            read_template(tmp_path / name)


def test_lines():
    text = '\n{"a": [1, {"b}": "\\n{"}],\n "c"\n: {"d": \n\n2}}'
    assert [line_of(text, path) for path in ((), ("a",), ("a", 1, "b}"), ("c",), ("c", "d"))] == [2, 2, 2, 4, 6]
