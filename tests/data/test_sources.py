"""Lines, files and conversations become the texts they hold; what is wrong is named by file and line."""

import json

import pytest

from bert4keras_rwkv.data.sources import Item, from_iterable, parts_of, read_jsonl, read_text, write_jsonl, write_text
from bert4keras_rwkv.templates import conversation

pytestmark = pytest.mark.backend_free

TEXTS = ["a\nb", " 中文\r\n", "", 'say "x"\u2028\x85y', "\n\n"]


def texts(items):
    return ["".join(part.text for part in parts_of(item)) for item in items]


def test_texts_come_back_from_jsonl(tmp_path):
    """Line breaks of every kind stay where they are."""
    write_jsonl(tmp_path / "a", TEXTS)
    assert texts(read_jsonl(tmp_path / "a")) == TEXTS
    assert texts(from_iterable([*TEXTS, {"text": "d"}])) == [*TEXTS, "d"]


def test_texts_come_back_from_plain_text(tmp_path):
    write_text(tmp_path / "a", TEXTS, "<end>")
    assert texts(read_text(tmp_path / "a", "<end>")) == TEXTS
    assert [item.place[-12:] for item in read_text(tmp_path / "a", "<end>")][1] == "lines from 4"
    write_text(tmp_path / "b", TEXTS[:1])
    assert texts(read_text(tmp_path / "b")) == TEXTS[:1]


def test_sizes_add_up_to_the_file(tmp_path):
    """So that a progress bar ends at 100 %."""
    write_text(tmp_path / "a", TEXTS, "<end>")
    write_jsonl(tmp_path / "b", TEXTS)
    for path, items in (
        (tmp_path / "a", read_text(tmp_path / "a", "<end>")),
        (tmp_path / "b", read_jsonl(tmp_path / "b")),
    ):
        assert sum(item.size for item in items) == path.stat().st_size


def test_conversations_in_the_form_of_world_models():
    """Only what the assistant says is to be learned, with the end of its turn."""
    turns = [("system", "Be brief."), ("user", " Hi\n\n\nthere\r\n "), ("assistant", "Yes?\n"), ("user", "No.")]
    parts = conversation([{"role": role, "content": text} for role, text in turns])
    whole = "System: Be brief.\n\nUser: Hi\nthere\n\nAssistant: Yes?\n\nUser: No.\n\n"
    assert "".join(part.text for part in parts) == whole
    assert [part.text for part in parts if part.answer] == [" Yes?\n\n"]


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"id": 3, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ],
)
def test_spellings_of_a_conversation(line):
    assert texts(from_iterable([line])) == ["User: q\n\nAssistant: a\n\n"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ('"text"', "Received: str"),
        ("{}", "Received: an empty object"),
        ('{"text": 3, "a": 1}', "the `text` of a document is a text. Received: 3"),
        ('[{"role": "robot", "content": "x"}]', "turn 0 .*system, user, .*robot"),
        ('[{"role": "user"}]', "turn 0"),
        ('["user"]', "turn 0"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl', line 3.*{said}"):
        texts(read_jsonl(tmp_path / "a.jsonl"))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n" + b"\xff\n")
    with pytest.raises(ValueError, match=r"a\.txt' is no UTF-8 text"):
        list(read_text(tmp_path / "a.txt"))


def test_plain_text_that_could_not_be_read_back(tmp_path):
    with pytest.raises(ValueError, match="several documents"):
        write_text(tmp_path / "a", ["a", "b"])
    with pytest.raises(ValueError, match="Document 1 holds the line '--'"):
        write_text(tmp_path / "a", ["a", "b\n--\nc"], "--")
    assert list(tmp_path.iterdir()) == []


def test_an_item_of_a_str_is_taken_as_it_is():
    """Also when it looks like JSON."""
    assert parts_of(Item(json.dumps({"text": "a"}), "", 0))[0].text == '{"text": "a"}'
