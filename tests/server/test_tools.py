"""Functions: what a model is told of them, the calls found in what it writes, and how they stand in the history."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.server.calls import CallReply
from bert4keras_rwkv.server.constraints import ChatWanted, Function, Message
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.server.tools import call_text, signature, tools_of, turns_of
from bert4keras_rwkv.templates import conversation, template_of

pytestmark = pytest.mark.backend_free
G1 = template_of("g1")
NAMES = ("weather", "now")
WEATHER = {
    "name": "weather",
    "description": "What the weather\nis.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "in English"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": one} for one in (WEATHER, {"name": "now"})]
ONE = '{"name": "weather", "arguments": {"city": "Rome"}}'
LINES = '{\n  "name": "weather",\n  "arguments": {\n    "city": "R\\"}]me",\n    "unit": "C"\n  }\n}'
ROME, QUOTED = ("weather", '{"city": "Rome"}'), ("weather", '{\n    "city": "R\\"}]me",\n    "unit": "C"\n  }')
NOW = '{"name": "now", "arguments": {}}'
# Text, and the content and calls in it.
TEXTS = [
    (f"```json\n{ONE}\n```", "", [ROME]),
    (f" {ONE}", "", [ROME]),
    (f"Let me look.\n\n```json\n{LINES}\n```\n", "Let me look.", [QUOTED]),
    (f"```json\n[\n{ONE},\n{NOW}\n]\n```", "", [ROME, ("now", "{}")]),
    (f"```json\n{ONE}\n```\n```json\n{NOW}\n```", "", [ROME, ("now", "{}")]),
    (f"<think>{ONE}</think>\n{ONE}", f"<think>{ONE}</think>", [ROME]),
    (f"```python\nx = 1\n```\n```json\n{ONE}\n```", "```python\nx = 1\n```", [ROME]),
    ('```\n{"arguments": {"city": "Rome"}, "name": "weather"}\n```', "", [ROME]),
    ('{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}', "", [ROME]),
    ('{"name": "now"}', "", [("now", "{}")]),
    ('```json\n{"name": "weather", "arguments": {"city": "Ro', "", [("weather", '{"city": "Ro')]),
    ('[{"name": "now", "arguments": {}}, {"name": "gone"}]', "", [("now", "{}")]),
    # What only looks like a call.
    (f"The call is {ONE}", None, []),
    ('```json\n{"name": "wetter", "arguments": {}}\n```', None, []),
    ('{"name": "weather", "arguments": [1]} and so on', None, []),
    ('{"name": "weather", "to": {}}', None, []),
    ('{"title": "Rome"}\nis JSON.', None, []),
    ("```json\n[1, 2]\n```\n", None, []),
    ("[] [[1]] {", None, []),
    ("{x}: `a` ``` \n\n`` ```jso", None, []),
    ("```json\n{]\n```", None, []),
    ("No call.\n", None, []),
    ("", None, []),
]


def read(pieces, **options):
    """(content, calls) of a text in pieces, and the deltas."""
    reply = CallReply(NAMES, thought=G1.thought, **options)
    deltas = [delta for piece in pieces for delta in reply.feed(piece)] + reply.end("stop")
    content = "".join(delta.get("content", "") for delta in deltas)
    calls = {}
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"name": "", "arguments": ""})
            assert ("id" in part) == (call["name"] == "")
            for name, text in part["function"].items():
                call[name] += text
    assert list(calls) == list(range(len(calls)))
    assert reply.reason("stop") == ("tool_calls" if calls else "stop") and reply.reason("length") == "length"
    return content, [tuple(call.values()) for call in calls.values()], deltas


@pytest.mark.parametrize(("text", "content", "calls"), TEXTS)
def test_calls_are_found_and_all_else_is_content(text, content, calls):
    assert read([text])[:2] == (text.lstrip() if content is None else content, calls)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_cut_of_a_text_gives_the_same(data):
    """Also of texts that nobody would write."""
    known = [text for text, _, _ in TEXTS]
    parts = st.sampled_from([*known, ONE, NOW, "```json\n", "\n```", "\n", "[", "]", "{", "}", ",", '"', "\\", "x "])
    text = data.draw(st.sampled_from(known) | st.lists(parts, max_size=6).map("".join))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for parallel in (True, False):
        assert read(pieces, parallel=parallel)[:2] == read([text], parallel=parallel)[:2]
        assert len(read([text], parallel=parallel)[1]) <= 1 or parallel


def test_what_is_sure_is_told_at_once():
    """Content that cannot become a call, and arguments as they are written."""
    reply = CallReply(NAMES, opening="```json")
    told = [reply.feed(one) for one in ("\n", '{"name": "weather", "argu', 'ments": {"ci', "ty", '": 1}', "}\n```")]
    assert [bool(one) for one in told] == [False, False, True, True, True, False]
    assert CallReply(NAMES).feed('{"title') == [] and CallReply(NAMES).feed('{"title"') == [{"content": '{"title"'}]


def wanted(**fields):
    return ChatWanted.model_validate({"messages": [{"role": "user", "content": "Hm?"}], "tools": TOOLS, **fields})


def test_what_a_model_is_told():
    tools = tools_of(wanted(), G1)
    assert not tools.forced and tools.names == NAMES
    told = 'weather(city: string, unit?: "C" | "F"): What the weather is.\n  city: in English'
    assert tools.system(G1) == f"Tools:\n- {told}\n- now()\nReturn only a JSON function call."
    defs = {"A": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "array"}}}}
    kinds = {"x": {"$ref": "#/$defs/A"}, "y": {"anyOf": [{"type": "integer"}, {"const": None}]}, "z": 3, "$": {}}
    text = signature(Function(name="f", parameters={"$defs": defs, "properties": kinds, "required": ["y"]}))
    assert text == "f(x?: A {a?: A, b?: any[]}, y: integer | null, z?: any, $?: any)"


def test_which_functions_may_be_called():
    assert tools_of(wanted(tool_choice="none"), G1) is None
    assert tools_of(wanted(tools=None), G1) is None and tools_of(wanted(tools=[]), template_of("world")) is None
    named = tools_of(wanted(tool_choice={"type": "function", "function": {"name": "now"}}), G1)
    assert named.forced and named.names == ("now",) and len(named.functions) == 2
    for field, fields in (
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "then"}}}),
        ("tool_choice", {"tool_choice": "required", "tools": []}),
        ("tools[1].function.name", {"tools": [TOOLS[0], TOOLS[0]]}),
        ("regex", {"regex": "a", "tool_choice": "required"}),
    ):
        with pytest.raises(ApiError) as raised:
            tools_of(wanted(**fields), G1)
        assert raised.value.body["error"]["param"] == field
    with pytest.raises(ApiError, match=r"'world' knows no functions\. Those that do: 'g1'"):
        tools_of(wanted(), template_of("world"))


def messages(*given):
    return [Message.model_validate(one) for one in given]


def called(*calls):
    calls = [{"id": id, "function": {"name": name, "arguments": text}} for id, (name, text) in calls]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def test_history_is_as_the_model_wrote_it():
    """What was found in a text is that text again, in either layout."""
    for text in (ONE, LINES, f"[\n{ONE},\n{NOW}\n]"):
        _, calls, _ = read([f"```json\n{text}\n```"])
        assert call_text(messages(called(*enumerate_ids(calls)))[0].tool_calls) == f"```json\n{text}\n```"
    told = messages(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        called(("a", ROME), ("b", ("now", "{}"))),
        {"role": "tool", "tool_call_id": "b", "content": "12:00"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": '{"C": 21}'}]},
    )
    tools = tools_of(wanted(), G1)
    parts = conversation(turns_of(told, G1, tools), "it", G1)
    assert "".join(part.text for part in parts) == (
        f"System: Be brief.\n{tools.system(G1)}\n\nUser: Rome?\n\nAssistant: ```json\n[\n{ONE},\n{NOW}\n]\n```\n\n"
        'User: Function output:\n{"C": 21}\n12:00\n\n'
    )
    assert turns_of(told[1:2], G1, tools)[0] == {"role": "system", "content": tools.system(G1)}
    with pytest.raises(ApiError, match=r"`messages\[3\].tool_call_id`.*'a', 'b'"):
        turns_of([*told[:3], Message(role="tool", tool_call_id="c", content="?")], G1)


def enumerate_ids(calls):
    return [(f"call_{number}", call) for number, call in enumerate(calls)]


def test_a_forced_call_has_one_of_the_layouts():
    grammar = tools_of(wanted(tool_choice="required"), G1).grammar(G1)
    assert grammar.count("%json") == 2 and grammar.startswith('start: "\\n" (call | "[')
    assert tools_of(wanted(tool_choice="required"), G1).mode(G1) == "call"
    single = tools_of(wanted(tool_choice="required", parallel_tool_calls=False), G1).grammar(G1)
    assert tools_of(wanted(), G1).grammar(G1).startswith('start: " ```json" "\\n" (call | "[')
    assert single.startswith('start: "\\n" (call) "\\n```"')
    schema = json.loads(grammar.splitlines()[3].partition("%json ")[2])
    assert schema["properties"] == WEATHER["parameters"]["properties"]
