"""Every command does what ChatRWKV's means: a plain model of it, which remembers ids and no state, says the same."""

import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from bert4keras_rwkv.chat import Chat, Turn
from bert4keras_rwkv.commands import free
from bert4keras_rwkv.commands.conversation import EMPTY, Conversation
from bert4keras_rwkv.commands.events import Begun, Ended, Left, Piece, Refused, Said, Table, Thinking
from bert4keras_rwkv.commands.show import bars, layer_norms
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.templates import template_of
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.models.small import arrays, assert_close, small_model

pytestmark = pytest.mark.on("jax", "torch")

TEXTS = [*(bytes([byte]) for byte in range(256)), b" yes", b" no", b".\n\n", "中".encode(), "é".encode()]
TEXTS += [letter.encode() + b"\n\n" for letter in "abcdefghijklmnopqrstuvw"]
HALVES = [number for number, text in enumerate(TEXTS, 1) if text.decode("utf-8", "replace") == "\ufffd"]
GREEDY = Sampling(temperature=0, mask_output=HALVES)
DRAWN = Sampling(temperature=1.5, mask_output=HALVES)
REPLY, FREE = 12, 7  # tokens


@pytest.fixture(scope="module")
def rwkv():
    tokenizer = RWKV_TOKENIZER.from_entries(dict(enumerate(TEXTS, 1)))
    return small_model(num_hidden_layers=1, vocab_size=len(TEXTS) + 1, tokenizer=tokenizer)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(free, "TOKENS", FREE)


def talk(rwkv, sampling=GREEDY, template="world", stop=lambda: False, chunk_len=64, **options):
    chat = Chat(rwkv, template, sampling=sampling, seed=5, max_new_tokens=REPLY, chunk_len=chunk_len)
    return Conversation(chat, seed=5, stop=stop, **options)


def written(events):
    return "".join(event.text for event in events if isinstance(event, Piece))


def said(conversation, line):
    """The events of a line, a list, and the text that was written."""
    events = list(conversation.take(line))
    return events, written(events)


def refused(conversation, line):
    (event,) = conversation.take(line)
    assert isinstance(event, Refused)
    return event.text


class ChatRWKV:
    """What v2/chat.py means, greedy: ids that were read, and no state. Its names are those of that program's states."""

    def __init__(self, rwkv, template="world"):
        self.rwkv, self.form = rwkv, template_of(template)
        self.chat_init = self.ids(self.form.opening())
        self.chat, self.chat_pre, self.gen_0, self.gen_1 = self.chat_init, None, None, None

    def ids(self, parts):
        return [
            one for part in parts for one in self.rwkv.tokenizer.encode(part if isinstance(part, str) else part.text)
        ]

    def write(self, ids, count, stops=()):
        pieces = self.rwkv.stream(ids, max_new_tokens=count, stop_texts=stops, sampling=GREEDY, as_text=True)
        text = "".join(pieces)
        return text, [*ids, *(one for one in pieces.ids if one)], text[len(self.rwkv.tokenizer.decode(pieces.ids)) :]

    def reply(self):
        text, ids, rest = self.write(self.chat_pre, REPLY, self.form.stop_texts)
        end = "\n" if text.endswith("\n") else "\n\n"
        self.chat = [*ids, *self.rwkv.tokenizer.encode(rest + end)]
        return text.lstrip()

    def apart(self, ids, stops):
        self.gen_0, self.stops = ids, stops
        return self.again()

    def again(self):
        """Softly: not while what is written may become a stop."""
        for count in itertools.count(FREE):
            text, self.gen_1, _ = self.write(self.gen_0, count, self.stops)
            begun = any(text.endswith(stop[:n]) for stop in self.stops for n in range(1, len(stop)))
            if not begun or len(self.gen_1) < len(self.gen_0) + count:
                return text

    def say(self, line):
        word, _, rest = line.partition(" ")
        if word == "+reset":
            self.chat, self.chat_pre = self.chat_init, None
        elif word == "+gen":
            return self.apart(self.ids(["\n" + rest]), ())
        elif word in ("+i", "+qq"):
            form = template_of("instruction" if word == "+i" else "qa")
            parts = [*form.opening(dialogue=False), *form.turn("user", rest), *form.turn("assistant")]
            return self.apart(self.ids(parts), form.stop_texts)
        elif word == "+qa":
            parts = [*self.form.turn("user", rest), *self.form.turn("assistant")]
            return self.apart([*self.chat_init, *self.ids(parts)], self.form.stop_texts)
        elif word == "+++":
            return self.apart(self.gen_1, ())
        elif word == "++":
            return self.again()
        elif word == "+":
            return self.reply()
        else:
            self.chat_pre = [*self.chat, *self.ids([*self.form.turn("user", line), *self.form.turn("assistant")])]
            return self.reply()
        return ""


@pytest.mark.parametrize("template", ["world", pytest.param("friends-zh", marks=pytest.mark.slow)])
def test_any_commands_in_any_order(rwkv, template):
    """Forty lines at random: each writes what ChatRWKV means, and the conversation has read what it would have."""
    draws, conversation, plain = random.Random(3), talk(rwkv, template=template), ChatRWKV(rwkv, template)
    kinds = ["Hi", "and you? é", "+gen ab", "+i go", "+qq why", "+qa who", "+reset", "+", "+++", "++"]
    lines = ["Hi", "+gen b"]
    while len(lines) < 40:
        line = draws.choice(kinds)
        lines += [line] if not (line == "+" and lines[-1] == "+reset") else ["Hi", "+"]
    replied = True
    for line in lines:
        if line == "+" and not replied:
            assert "no message yet" in refused(conversation, line)
            continue
        replied = {"+reset": False, "Hi": True, "and you? é": True}.get(line, replied)
        events, text = said(conversation, line)
        assert text == plain.say(line), line
        assert not [event for event in events if isinstance(event, Refused)]
        if isinstance(events[-1], Ended):
            apart = line.startswith("+") and line != "+"
            assert events[-1].context == len(plain.gen_1 if apart else conversation.chat.ids)
    said(conversation, "Hi")
    plain.say("Hi")
    ids = conversation.chat.ids
    assert plain.chat[: len(ids)] == ids
    assert_close(arrays(np.ones(1), conversation.chat.state), arrays(np.ones(1), rwkv.prefill([ids])[1]))


def test_another_answer_comes_from_the_same_place(rwkv):
    """`+` and `++` draw otherwise than before, also a second time; what was read before is the same."""
    conversation = talk(rwkv, DRAWN)
    for first, again in (("Hi", "+"), ("+gen Hi", "++")):
        texts = [said(conversation, line)[1] for line in (first, again, again)]
        assert len(set(texts)) == 3
    asked = conversation.chat.history
    assert [turn.message for turn in asked] == ["Hi"]
    assert said(talk(rwkv, DRAWN), "Hi")[1] == said(talk(rwkv, DRAWN), "Hi")[1]


def test_flags_are_for_one_line(rwkv):
    """A temperature of 0.2 at least, and the seed goes on as if nothing had been said."""
    conversation, other = talk(rwkv, DRAWN), talk(rwkv, Sampling(temperature=0.2, top_p=0.3, mask_output=HALVES))
    for line in ("Hi", "+gen a"):
        assert said(conversation, f"-temp=0.01 {line} -top_p=0.3")[1] == said(other, line)[1]
        assert conversation.chat.sampling == DRAWN
    notices = [event.text for event in conversation.take("-temp=9 -top_p=0.5 Hi") if isinstance(event, Said)]
    assert notices == ["-temp is from 0.2 to 5: it is 5 for this line."]


def test_a_number_of_tokens_that_is_said_bounds_all_that_is_written(rwkv):
    """At whole characters; `/set` says it, too, and of a text that `+++` goes on with."""
    conversation = talk(rwkv, free_tokens=3)
    assert said(conversation, "+gen a")[0][-1].tokens == 3
    said(conversation, "/set max_new_tokens 2")
    assert [said(conversation, line)[0][-1].tokens for line in ("+++", "+gen a")] == [2, 2]


@pytest.mark.parametrize("line", ["Hi", "+gen ab"])
@pytest.mark.parametrize("way", ["asked", "left"])
def test_stopping_anywhere_keeps_what_was_shown(rwkv, line, way):
    """Whether it is asked for, as Ctrl-C does, or the events are left. 1e-4: read at once and token by token."""
    whole = said(talk(rwkv, DRAWN), line)[1]
    for count in (1, 3, 5):
        asked = []
        conversation = talk(rwkv, DRAWN, stop=lambda asked=asked, count=count: len(asked) >= count)
        shown, events = "", conversation.take(line)
        for event in events:
            if isinstance(event, Piece):
                shown += event.text
                asked.append(None)
                if way == "left" and len(asked) == count:
                    events.close()
                    break
            if isinstance(event, Ended):
                assert event.stopped
        asked.clear()
        assert whole.startswith(shown) and len(shown) < len(whole)
        if line == "Hi":
            chat = conversation.chat
            assert chat.history[-1].reply == shown and rwkv.tokenizer.decode(chat.ids).endswith(shown)
            assert_close(arrays(np.ones(1), chat.state), arrays(np.ones(1), rwkv.prefill([chat.ids])[1]))
        else:
            more = said(conversation, "+++")[1]
            assert (shown + more).startswith(whole) or whole.startswith(shown + more)


def test_reading_tells_how_far_it_is_and_can_be_stopped(rwkv):
    told = []
    conversation = talk(rwkv, chunk_len=16, progress=lambda done, total: told.append((done, total)))
    said(conversation, "Hi")
    before = conversation.chat.ids
    conversation._stop = lambda: len(told) >= 3
    for line in ("x" * 100, "+gen " + "y" * 100):
        told.clear()
        events, _ = said(conversation, line)
        assert events == [Said("Stopped before all was read: nothing was sent.")]
        assert len(told) == 3 and told[0][0] == 16 and conversation.chat.ids == before
    told.clear()
    conversation._stop = lambda: False
    events, text = said(conversation, "x" * 100)
    assert text == ChatRWKVs(rwkv, ["Hi", "x" * 100]) and [done for done, _ in told[:3]] == [16, 32, 48]


def ChatRWKVs(rwkv, lines):
    plain = ChatRWKV(rwkv)
    return [plain.say(line) for line in lines][-1]


def test_free_text_ends_softly_at_a_whole_character(rwkv):
    """Not before so many tokens, and not inside a character."""
    halves = Sampling(temperature=2.0, mask_output=range(129))
    for seed in range(6):
        conversation = talk(rwkv, halves)
        conversation._random = np.random.default_rng(seed)
        events = list(conversation.take("+gen a"))
        pieces = [event for event in events if isinstance(event, Piece)]
        assert all(piece.tokens < FREE for piece in pieces[:-1]) and pieces[-1].tokens >= FREE
        ids = events[-1].context - len(rwkv.tokenizer.encode("\na"))
        assert ids <= events[-1].tokens == pieces[-1].tokens


def test_forks_undo_and_system(rwkv):
    """A fork stays where it was made; the same message after `/undo` has the same reply; `/system` begins anew."""
    conversation = talk(rwkv, DRAWN)
    first, second = said(conversation, "Hi")[1], said(conversation, "And?")[1]
    said(conversation, "/fork here")
    said(conversation, "/undo 2")
    assert [said(conversation, line)[1] for line in ("Hi", "And?")] == [first, second]
    said(conversation, "More")
    assert "already" in refused(conversation, "/fork here") and "no other" in refused(conversation, "/switch there")
    said(conversation, "/switch here")
    assert (conversation.name, len(conversation.chat.history)) == ("here", 2)
    assert refused(conversation, "/undo 99") == "There are 2 messages to take back; /undo 2 takes back all."
    (table,) = conversation.take("/switch")
    assert table.rows == (("here", "2 messages"), ("main", "3 messages"))
    assert conversation.speaker == "[here] User:"
    said(conversation, "/system Be brief.")
    said(conversation, "Hi")
    assert rwkv.tokenizer.decode(conversation.chat.ids).startswith("System: Be brief.\n\nUser: hi\n\n")


def test_a_session_file_and_two_programs(rwkv, tmp_path):
    """What another program wrote, or anything else, is written over only where that is asked for."""
    one, other, path = talk(rwkv, DRAWN), talk(rwkv, DRAWN), tmp_path / "a b.chat"
    said(one, "Hi")
    assert isinstance(said(one, f"/save {path}")[0][0], Said)
    said(other, f"/load {path}")
    assert said(one, "And?")[1] == said(other, "And?")[1]
    assert isinstance(said(other, f"/save {path}")[0][0], Said)
    assert "another program did since" in refused(one, f"/save {path}")
    said(one, "More")
    said(one, f"/save! {path}")
    said(other, f"/load {path}")
    assert len(other.chat.history) == 3
    (tmp_path / "notes").write_text("mine")
    assert "is there" in refused(one, f"/save {tmp_path}/notes") and (tmp_path / "notes").read_text() == "mine"
    assert "no regular file" in refused(one, "/load /dev/zero")
    assert "\\x1b[2J" in refused(one, f"/load {tmp_path}/\x1b[2J")
    path.write_bytes(path.read_bytes()[:-9])
    assert str(path) in refused(one, f"/load {path}") and len(one.chat.history) == 3


def test_a_prompt_of_ones_own(rwkv, tmp_path):
    conversation, path = talk(rwkv), tmp_path / "mine.json"
    said(conversation, "Hi")
    path.write_text('{"name": "mine"}')
    assert "names" in refused(conversation, f"+prompt {path}") and len(conversation.chat.history) == 1
    form = {"user": "{user}{mark}{text}|", "assistant": "{assistant}{mark}", "reply": "{text}|", "stop": ["|"]}
    path.write_text(json.dumps({"name": "mine", "names": {"user": "I", "assistant": "You"}, "begin": "So.", **form}))
    said(conversation, f"+prompt {path}")
    events, text = said(conversation, "Hi")
    assert events[0] == Begun("You:", "I:Hi|") and "|" not in text
    assert rwkv.tokenizer.decode(conversation.chat.ids) == f"So.I:Hi|You:{text}"
    said(conversation, "+reset")
    said(conversation, "Hi")
    assert rwkv.tokenizer.decode(conversation.chat.ids) == f"So.I:Hi|You:{text}"


def test_what_is_set_and_shown(rwkv):
    conversation = talk(rwkv)
    said(conversation, "/set temperature 0.5")
    said(conversation, "/set top_k none")
    said(conversation, "/set no_repeat [1, 2]")
    said(conversation, "/set max_new_tokens 3")
    assert conversation.chat.sampling == Sampling(temperature=0.5, mask_output=HALVES, no_repeat=(1, 2))
    assert said(conversation, "Hi")[0][-1].tokens <= 3
    for line, told in (
        ("/set temperature hot", "/set temperature is followed by a number"),
        ("/set temperature -1", "`temperature` divides the logits"),
        ("/set no_repeat [9999]", "`no_repeat` holds ids of the vocabulary"),
        ("/set speed 3", "There is nothing called speed to set. There are: temperature"),
        ("/set mode long", "has the modes: none"),
        ("/set max_new_tokens 0", "`max_new_tokens` is a number of tokens"),
    ):
        assert told in refused(conversation, line)
    (table,) = conversation.take("/set")
    for name, value in table.rows:
        if name != "mode":
            assert said(conversation, f"/set {name} {value}")[0] == [Said(f"{name}: {value}")]
    (table,) = conversation.take("/show")
    rows = dict(table.rows)
    assert rows["temperature"] == "0.5" and rows["state"].endswith("1 layers") and rows["norm"].startswith("█")
    assert "3 a reply" in rows["tokens"]
    assert all(isinstance(event, Table) for line in ("/help", "/set") for event in conversation.take(line))
    assert list(conversation.take("/exit")) == [Left()]


@pytest.mark.parametrize(
    "line, told",
    [
        ("", EMPTY),
        (" \n\u3000", EMPTY),
        ("a\ud800", "surrogate"),
        ("/nonsense", "There is no command"),
        ("+", "no message yet"),
        ("++", "Nothing was written apart"),
        ("+++", "Nothing was written apart"),
        ("/undo", "There are no messages to take back."),
        ("/undo all", "a number of messages"),
        ("+prompt nowhere.json", "nowhere.json: No such file"),
        ("/load nowhere.chat", "nowhere.chat"),
        ("/load a\0b", "null"),
        ("/save nowhere/a.chat", "nowhere"),
    ],
)
def test_what_cannot_be_changes_nothing(rwkv, line, told):
    conversation = talk(rwkv)
    before = conversation.chat.ids
    assert told in refused(conversation, line)
    assert conversation.chat.ids == before and not conversation.chat.history


def events_of(pieces, **options):
    """The events of a reply that comes in these pieces."""

    class Stream:
        drawn, __iter__ = 1, lambda self: iter(pieces)

    turns = {"ids": [], "history": [Turn("Hi", "")], "stream": lambda text: Stream()}
    chat = SimpleNamespace(template=template_of("g1"), sampling=Sampling(), **turns)
    chat.fork = lambda: chat
    return list(Conversation(chat, **options).take("Hi"))


def test_a_reply_that_is_stopped_before_it_has_a_text_is_said_to_be():
    assert events_of([], stop=lambda: True)[1:] == [Ended(1, 0, True)]
    assert events_of([])[1:] == [Ended(1, 0)]


def test_thoughts_are_folded():
    """A reply that thinks is told of, and its answer shown; what only looks like a thought at first is all shown."""
    events = events_of(["<think", ">so", " so</thi", "nk>\n\n", "It", " is."])[1:-1]
    assert events == [Thinking(1)] * 4 + [Piece("It", 1), Piece(" is.", 1)]
    assert written(events_of(["<", "b>", " it"])) == "<b> it"
    assert not written(events_of(["<think>", "for ever"]))


def test_bars():
    assert bars([0, 1, 4, 8]) == "▁▂▅█" and bars([0.0, 0.0]) == "▁▁"
    assert layer_norms(np.full((2, 1, 2, 2), 3.0)) == [6.0, 6.0]
    assert layer_norms(np.array([[[4.0, 0], [2, 0], [-1e30, -1e30]]])) == [2.0]
