"""A chat is one text, read and written turn by turn, and every place of it can be gone back to."""

import copy
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.chat import Chat
from bert4keras_rwkv.chat.turns import Record, kept_within
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.session import Place
from bert4keras_rwkv.templates import conversation, template_names, template_of
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights.checkpoint import Origin
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors, write_safetensors
from tests.models.small import arrays, assert_close, small_model

# Every byte, and tokens in which a turn ends: a random network writes one of them every dozen tokens.
TEXTS = [*(bytes([byte]) for byte in range(256)), b" yes", b" no", b".\n\n", b"ab" * 128]
TEXTS += [letter.encode() + b"\n\n" for letter in "abcdefghijklmnopqrstuvw"]
TOKENS = dict(enumerate(TEXTS, 1))
GREEDY = Sampling(temperature=0, mask_output=[0])
DRAWN = Sampling(temperature=1.5, presence_penalty=0.2, frequency_penalty=0.1, penalty_decay=0.9)


LONG = Sampling(mask_output=[0, 11, *(number for number, text in TOKENS.items() if b"\n" in text)])


def talker(version="6", **options):
    rwkv = small_model(
        version,
        num_hidden_layers=1,
        vocab_size=len(TEXTS) + 1,
        tokenizer=RWKV_TOKENIZER.from_entries(TOKENS),
        **options,
    )
    rwkv.origin = Origin("talker", "world")
    return rwkv


@pytest.fixture(scope="module")
def rwkv():
    return talker()


@pytest.fixture(scope="module")
def scripted():
    """A model that says what follows from its last token: "yes.", and the end of the text behind "no"."""
    rwkv = small_model(
        "4",
        num_hidden_layers=1,
        hidden_size=128,
        vocab_size=len(TEXTS) + 1,
        tokenizer=RWKV_TOKENIZER.from_entries(TOKENS),
    )
    for path in ("blocks/0/time_mix/output_projection/kernel", "blocks/0/channel_mix/value/kernel"):
        variable = rwkv.backbone.variable_at(path)
        variable.assign(np.zeros(variable.shape, "float32"))
    for norm in ("ln0", "ln_out"):
        for name, value in (("gamma", 1.0), ("beta", 0.0)):
            variable = rwkv.backbone.variable_at(f"{norm}/{name}")
            variable.assign(np.full(variable.shape, value, "float32"))
    embeddings = np.random.default_rng(0).normal(size=(len(TEXTS) + 1, 128)).astype("float32")
    embeddings -= embeddings.mean(1, keepdims=True)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rwkv.backbone.variable_at("embed/embeddings").assign(embeddings)
    ids = {text: number for number, text in TOKENS.items()}
    head = np.zeros((128, len(TEXTS) + 1), "float32")
    follows = {b":": b" yes", b" yes": b".\n\n", b"k": b" no", b" no": None}
    for last, text in follows.items():
        head[:, 0 if text is None else ids[text]] += embeddings[ids[last]]
    rwkv.backbone.variable_at("head/kernel").assign(head)
    return rwkv


def made(rwkv, **options):
    options = {"sampling": DRAWN, "seed": 5, "max_new_tokens": 12, "dialogue": False} | options
    return Chat(rwkv, **options)


def state_of(chat):
    return arrays(np.ones(1), chat.state)


def same(one, other):
    """Bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(state_of(one), state_of(other), strict=True))


def assert_read(chat):
    """The state is that of the ids that the chat says it has read."""
    assert_close(state_of(chat), arrays(np.ones(1), chat.rwkv.prefill([chat.ids])[1]))


def check_turn_by_turn(rwkv, template, mode=None):
    chat = made(rwkv, template=template, mode=mode, sampling=GREEDY)
    form, ids = template_of(template), []

    def read(parts):
        return [one for part in parts for one in rwkv.tokenizer.encode(part.text)]

    ids += read(form.opening(dialogue=False))
    for message in ("Hi", "And you?\n\n so?"):
        ids += read([*form.turn("user", message, mode), *form.turn("assistant", mode=mode)])
        stream = rwkv.stream(ids, max_new_tokens=12, stop_texts=form.stop_texts, sampling=GREEDY, as_text=True)
        text = "".join(stream)
        opening = form.mode(mode).opening
        assert chat.reply(message) == opening + (text if opening else text.lstrip())
        ids += stream.ids
        assert chat.ids == ids
        end, rest = form.after_reply, text[len(rwkv.tokenizer.decode(stream.ids)) :]
        ids += rwkv.tokenizer.encode(rest + end[max(n for n in range(len(end) + 1) if text.endswith(end[:n])) :])
    assert_read(chat)


def test_turn_by_turn_is_one_text(rwkv):
    check_turn_by_turn(rwkv, "world")


@pytest.mark.on("torch")
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_turn_by_turn_with_every_template(version):
    rwkv = talker(version)
    for template in template_names():
        modes = list(template_of(template).modes) or [None]
        for mode in modes if version == "6" else modes[:1]:
            check_turn_by_turn(rwkv, template, mode)


@pytest.mark.on("jax", "torch")
def test_ids_are_those_of_training(scripted):
    """Also where a token holds the end of what is said and the stop behind it."""
    chat = made(scripted, template="world", sampling="greedy", system="Be brief.", dialogue=True)
    assert list(chat.stream("Hi:")) == ["yes", "."] and chat.reply("So") == "yes."
    turns = [("system", "Be brief."), *((turn["role"], turn["content"]) for turn in template_of("world").dialogue)]
    turns += [("user", "Hi:"), ("assistant", "yes."), ("user", "So"), ("assistant", "yes.")]
    parts = conversation([{"role": role, "content": content} for role, content in turns])
    ids = [one for part in parts for one in scripted.tokenizer.encode(part.text)]
    assert chat.ids == ids[:-1] and ids[-1] == 1 + TEXTS.index(b".\n\n")


@pytest.mark.on("jax", "torch")
def test_the_end_of_a_text_ends_a_reply_and_is_not_remembered(scripted):
    chat = made(scripted, template=template_of("world"), sampling="greedy")
    form = {**chat.template.to_dict(), "name": "k", "assistant": "k"}
    chat = made(scripted, template=type(chat.template)(**form), sampling="greedy")
    assert chat.reply("a") == "no" and 0 not in chat.ids
    assert_read(chat)
    assert chat.reply("b") == "no" and chat.fork().reply("c") == "no"
    assert_read(chat)


def test_undo_and_say_it_again(rwkv):
    chat = made(rwkv)
    first = chat.reply("Hi")
    before = state_of(chat)
    second = chat.reply("What?"), chat.reply("Why?")
    gone = chat.undo(2)
    assert [turn.message for turn in gone] == ["What?", "Why?"] and [turn.reply for turn in chat.history] == [first]
    np.testing.assert_equal(state_of(chat), before)
    assert (chat.reply("What?"), chat.reply("Why?")) == second
    again = chat.retry()
    chat.undo()
    assert chat.reply("Why?") == again
    chat.reset()
    assert chat.history == [] and chat.ids == [] and chat.reply("Hi") == first
    for n in (0, 2, True, 1.0):
        with pytest.raises(ValueError, match="1 to the 1 that there are"):
            chat.undo(n)


@pytest.mark.on("jax", "torch")
def test_retry_is_another_answer_from_the_same_state(rwkv):
    chat = made(rwkv)
    chat.reply("Hi")
    answers, starts = [], []
    for stream in (chat.stream("What?"), *(chat.stream_retry for _ in range(3))):
        stream = stream if not callable(stream) else stream()
        answers.append("".join(stream))
        starts.append(arrays(np.ones(1), chat._records[-1].before_reply.before))
    assert len(set(answers)) == 4
    for start in starts:
        np.testing.assert_equal(start, starts[0])
    assert len(chat.history) == 2 and chat.history[-1].reply == answers[-1]
    assert_read(chat)
    chat.sampling = "greedy"
    assert chat.retry() == chat.retry()
    with pytest.raises(ValueError, match="no message yet"):
        made(rwkv).retry()


@pytest.mark.on("jax", "torch")
def test_a_fork_does_not_disturb(rwkv):
    alone, chat = made(rwkv), made(rwkv)
    for one in (alone, chat):
        one.reply("Hi")
    wanted = list(alone.stream("What?"))
    stream = chat.stream("What?")
    given = [next(stream), next(stream)]
    fork = chat.fork()
    assert fork.history == chat.history and same(fork, chat)
    fork.retry()
    fork.undo(2)
    fork.reply("Bye")
    assert given + list(stream) == wanted
    assert same(chat, alone) and chat.reply("Why?") == alone.reply("Why?")
    assert len(fork.history) == 1


@pytest.mark.on("jax", "torch")
@pytest.mark.parametrize("way", ["close", "break", "interrupt", "nothing"])
def test_left_at_any_piece(rwkv, rng, way):
    """The state is that of what was shown, and the reply is closed as a whole one."""
    chat = made(rwkv, max_new_tokens=40, sampling=LONG)
    chat.reply("Hi")
    stream, shown = chat.stream("What?"), ""
    for _ in range(0 if way == "nothing" else rng.integers(1, 6)):
        shown += next(stream)
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            for piece in stream:
                shown += piece
                raise KeyboardInterrupt
    assert chat.history[-1].reply == shown
    read = rwkv.tokenizer.decode(chat.ids)
    assert read.endswith("What?\n\nAssistant:" if way == "nothing" else shown)
    assert_read(chat)
    chat.reply("Why?")
    assert f"{shown.lstrip()}\n\nUser: Why?\n\nAssistant:" in rwkv.tokenizer.decode(chat.ids)
    if way != "close":
        with pytest.raises(RuntimeError, match="went on since"):
            next(stream)


@pytest.mark.on("jax", "torch")
def test_interrupted_in_a_step(rwkv, rng, monkeypatch):
    """Ctrl-C while a token is computed, at any of them: what was shown is what the chat has read."""
    chat, writer = made(rwkv, max_new_tokens=40, sampling=LONG), rwkv._write()
    chat.reply("Hi")
    step = writer.step
    for count in rng.integers(0, 8, 3):
        left, shown = int(count), []

        def interrupted(request, carry):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return step(request, carry)

        monkeypatch.setattr(writer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for piece in chat.stream("What?"):
                shown.append(piece)
        monkeypatch.setattr(writer, "step", step)
        assert chat.history[-1].reply == "".join(shown)
        assert_read(chat)


@pytest.mark.on("jax", "torch")
def test_no_program_is_made_that_generate_does_not_need():
    rwkv = talker()
    chat = made(rwkv)
    chat.reply("Hi")
    chat.retry()
    chat.fork().reply("What?")
    chat.undo()
    chat.reply("Why?")
    assert rwkv._reader is None and len(rwkv._writer._begins) == len(rwkv._writer._steps) == 1


@pytest.mark.on("torch")
def test_drawn_counts_what_waits(scripted):
    stream = made(scripted, sampling="greedy").stream("Hi")
    assert stream.drawn == 0 and "".join(stream) == "yes." and stream.drawn == 2


def saved_and_loaded(chat, path, rwkv):
    chat.save(path)
    return Chat.load(path, rwkv)


@pytest.mark.on("jax", "torch")
def test_saved_and_loaded_is_not_having_stopped(rwkv, tmp_path):
    chat = made(rwkv, template="g1", mode="on", system="Be brief.")
    loaded = saved_and_loaded(chat, tmp_path / "chat", rwkv)
    assert loaded.reply("Hi") == chat.reply("Hi")
    chat.retry()
    stream = chat.stream("What?")
    next(stream), next(stream)
    loaded = saved_and_loaded(chat, tmp_path / "chat", rwkv)
    stream.close()
    assert loaded.history == chat.history and loaded.ids == chat.ids and same(loaded, chat)
    assert (loaded.template, loaded.mode, loaded.system) == (chat.template, "on", "Be brief.")
    assert (loaded.sampling, loaded.max_new_tokens) == (DRAWN, 12)
    for say in (lambda c: c.reply("Why?"), lambda c: c.retry(), lambda c: c.undo(2), lambda c: c.reply("So")):
        assert say(loaded) == say(chat)
    loaded.reset()
    chat.reset()
    assert loaded.reply("Hi") == chat.reply("Hi")


@pytest.mark.slow
@pytest.mark.on("jax")
def test_another_process_goes_on(rwkv, tmp_path):
    chat = made(rwkv)
    chat.reply("Hi")
    chat.save(tmp_path / "chat")
    code = "import sys; from tests.test_chat import Chat, talker; "
    code += "sys.stdout.buffer.write(Chat.load(sys.argv[1], talker()).reply('What?').encode())"
    command = [sys.executable, "-c", code, tmp_path / "chat"]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1])
    assert done.stdout.decode() == chat.reply("What?"), done.stderr


@pytest.mark.on("jax", "torch")
def test_what_is_not_kept_is_read_again(rwkv, tmp_path):
    """To rounding: in other pieces. It says how far it is."""
    said = []
    chat = made(rwkv, memory=0, chunk_len=20, progress=lambda *counts: said.append(counts), sampling=GREEDY)
    replies = [chat.reply(message) for message in ("one", "two", "three", "four")]
    kept = [record.after_reply is not None for record in chat._records]
    assert kept == [False, False, True, True]  # that of the newest, which the next message has begun with
    loaded = saved_and_loaded(chat, tmp_path / "chat", rwkv)
    said.clear()
    chat.undo(3)
    assert len(said) > 1 and said[-1][0] == said[-1][1] == len(chat.ids) - 1
    assert_read(chat)
    assert [chat.reply(message) for message in ("two", "three", "four")] == replies[1:]
    loaded.undo(2)
    assert loaded.reply("three") == replies[2]


@pytest.mark.on("torch")
def test_which_states_are_kept(rwkv):
    place = Place(rwkv.state_for(None, 1), None, None)
    size = sum(4 * np.prod(array.shape[1:]) for array in (place.before.wkv, place.before.shift))
    for room, wanted in ((0, "...xx"), (5, "xx.xx"), (4, "xx..x"), (10, "xxxxx")):
        records = [Record("", "user", None, "", [], None, None, before_reply=place, after_reply=place) for _ in "12345"]
        kept_within(records, rwkv.config, room * size)
        if room == 0:
            assert [r.after_reply is not None for r in records] == [False] * 4 + [True]
        else:
            count = sum((r.after_reply is not None) + (r.before_reply is not None) for r in records)
            assert count == room and records[-1].after_reply and records[0].after_reply, wanted


MESSAGE = "ab" * 128 * 4096  # 1 MB in 4,096 tokens


@pytest.mark.on("jax", "torch")
def test_a_message_of_a_megabyte(rwkv):
    said = []
    chat = made(rwkv, max_new_tokens=2, progress=lambda *counts: said.append(counts))
    chat.reply(MESSAGE)
    assert len(chat.ids) > 4096 and [done for done, _ in said[:2]] == [1024, 2048]
    assert said[-1][0] == said[-1][1] >= 4096
    assert len(chat._repr_markdown_()) > len(MESSAGE)


@pytest.mark.on("torch")
def test_messages_that_are_none(rwkv):
    chat = made(rwkv)
    chat.reply("a\x00b")
    before, ids = state_of(chat), chat.ids
    for message, said in (("", "is empty"), (" \u3000\r\n", "is empty"), ("a\ud800", "half of a surrogate pair")):
        with pytest.raises(ValueError, match=said):
            chat.stream(message)
    with pytest.raises(TypeError, match="A message is a str"):
        chat.reply(b"a")
    with pytest.raises(ValueError, match="no form for what the 'tool'"):
        chat.reply("a", role="tool")
    with pytest.raises(ValueError, match="has the modes"):
        chat.mode = "on"
    np.testing.assert_equal(state_of(chat), before)
    assert chat.ids == ids and len(chat.history) == 1


def changed(path, change, **tensors):
    """A saved chat with other values."""
    with open_safetensors(path) as found:
        values = json.loads(found["chat"].tobytes())
        change(values)
        every = {name: found[name] for name in found} | tensors
        every["chat"] = np.frombuffer(json.dumps(values).encode(), np.uint8)
        metadata = found.metadata
    write_safetensors(path, every, metadata=metadata)


@pytest.mark.on("torch")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["model"].update(name="another"), "another model. name: 'another', here 'talker'"),
        (lambda v: v["model"].update(hidden_size=32), "another model. hidden_size: 32, here 16"),
        (lambda v: v.pop("turns"), "KeyError: 'turns'"),
        (lambda v: v.update(turns=3), "TypeError"),
        (lambda v: v.update(model=[]), "AttributeError"),
        (lambda v: v.update(first=[10**9]), "A token id is 0 to"),
        (lambda v: v.update(first=[1.5]), "whole numbers"),
        (lambda v: v.update(first="a"), "ids are a list"),
        (lambda v: v.update(seed=[1]), "`seed` is an int or an array"),
        (lambda v: v.update(start=None), "its `start` is a dict"),
        (lambda v: v["turns"][0].update(message=["x"]), "its `message` is a str"),
        (lambda v: v["turns"][0].update(drawn=True), "its `drawn` is a int"),
        (lambda v: v["turns"][0]["after_reply"].update(state=99), "the state 'states.99.wkv' is missing"),
        (lambda v: v["turns"][0]["after_reply"].update(last=[]), "no ids that wait"),
        (lambda v: v["settings"]["sampling"].update(top_p=7), "`top_p` is the share"),
        (lambda v: v["settings"]["sampling"].update(x=7), "unexpected keyword"),
        (lambda v: v["settings"]["template"].pop("reply"), "its template: the field `reply` is missing"),
        (lambda v: v["settings"].update(mode="on"), "has the modes"),
        (lambda v: v["settings"].update(max_new_tokens=-1), "max_new_tokens"),
    ],
)
def test_a_bad_file_is_refused(rwkv, tmp_path, change, said):
    chat, path = made(rwkv, max_new_tokens=2), tmp_path / "chat"
    chat.reply("Hi")
    chat.save(path)
    changed(path, lambda values: None)
    Chat.load(path, rwkv)
    changed(path, change)
    with pytest.raises(ValueError, match=said) as error:
        Chat.load(path, rwkv)
    assert str(path) in str(error.value)


@pytest.mark.on("torch")
def test_a_file_that_is_cut_short_or_another(rwkv, tmp_path):
    chat, path = made(rwkv, max_new_tokens=2), tmp_path / "chat"
    chat.reply("Hi")
    chat.save(path)
    data = path.read_bytes()
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(ValueError, match="cut"):
            Chat.load(tmp_path / "cut", rwkv)
    chat.state  # noqa: B018
    rwkv.save_state(chat.state, tmp_path / "state")
    with pytest.raises(ValueError, match=r"state' is no conversation that `Chat\.save` wrote"):
        Chat.load(tmp_path / "state", rwkv)
    with pytest.raises(ValueError, match="another model"):
        Chat.load(path, talker("5.2"))


@pytest.mark.on("torch")
def test_the_old_file_stays_when_saving_fails(rwkv, tmp_path, monkeypatch):
    chat, path = made(rwkv, max_new_tokens=2), tmp_path / "chat"
    chat.reply("Hi")
    chat.save(path)
    before = path.read_bytes()

    def full(path):
        with atomic_file(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("bert4keras_rwkv.weights.formats.safetensors_file.atomic_file", full)
    with pytest.raises(OSError, match="No space"):
        chat.save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["chat"]


@pytest.mark.on("torch")
def test_defaults(rwkv):
    """As in ChatRWKV's demo: gentler with a state, and then no dialogue is read first."""
    plain, begun = Chat(rwkv), Chat(rwkv, state=rwkv.prefill([[1, 2, 3]])[1])
    assert (plain.sampling.top_p, plain.sampling.presence_penalty, plain.sampling.frequency_penalty) == (0.3, 0.5, 0.5)
    assert (begun.sampling.top_p, begun.sampling.presence_penalty, begun.sampling.frequency_penalty) == (0.2, 0.3, 0.3)
    assert plain.template.name == "world" and begun.ids == []
    assert rwkv.tokenizer.decode(plain.ids).startswith("User: hi\n\nAssistant: ")
    assert plain.state is not None and plain.history == []
    before = state_of(plain.prepare())
    assert_close(before, arrays(np.ones(1), rwkv.prefill([plain.ids])[1]))


@pytest.mark.on("torch")
def test_a_model_keeps_its_template(rwkv, tmp_path):
    named = copy.copy(rwkv)
    named.origin = Origin("any", "qa")
    named.save_to_preset(tmp_path / "mine")
    loaded = RWKV.from_preset(tmp_path / "mine")
    assert loaded.origin == copy.deepcopy(loaded).origin == ("mine", "qa")
    assert Chat(loaded).template == template_of("qa") and Chat(loaded, "g1").template.name == "g1"


@pytest.mark.on("torch")
def test_as_markdown(scripted):
    chat = made(scripted, template="g1", mode="on", sampling="greedy", max_new_tokens=3)
    assert chat._repr_markdown_() == "*…*"
    chat.reply("<b>\nnew")
    chat._records[-1].raw = ">Hm <i>.</think>\nYes & no"
    turn = chat.history[-1]
    assert (turn.thought, turn.answer) == ("Hm <i>.", "Yes & no")
    shown = chat._repr_markdown_()
    assert "**User:** &lt;b&gt;  \nnew" in shown and shown.endswith("</details>\n\nYes &amp; no")
    assert "<i>" not in shown and "Hm &lt;i&gt;." in shown


@pytest.mark.on("torch")
def test_in_a_notebook_a_stream_shows_itself(scripted, monkeypatch):
    from IPython import display

    seen = []

    class Handle:
        def update(self, shown):
            seen.append(shown.data)

    monkeypatch.setattr(display, "display", lambda shown, display_id: Handle())
    chat = made(scripted, sampling="greedy", template="world")
    chat.stream("Hi")._ipython_display_()
    assert seen[-1] == "**User:** Hi\n\n**Assistant:** yes." and len(seen) == 2
    assert ops.convert_to_numpy(chat.state.wkv).any()


@pytest.mark.once
def test_one_thread_at_a_time():
    """Another one is refused, and nothing has changed: threads that all speak leave a chat that fits its history."""
    chat, inside, leave = talked(), threading.Event(), threading.Event()

    def busy():
        with chat._alone():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=busy)
    thread.start()
    inside.wait(60)
    ids = [one for record in chat._records for one in (*record.asked, *record.written)]
    for use in (lambda: chat.reply("Hi"), chat.retry, chat.undo, chat.fork, chat.reset, lambda: chat.ids):
        with pytest.raises(RuntimeError, match="Another thread uses this chat"):
            use()
    leave.set()
    thread.join()
    assert chat.ids[-len(ids) :] == ids


def talked():
    chat = Chat(talker(), seed=3, sampling=DRAWN, max_new_tokens=5)
    chat.reply("Hello")
    return chat


@pytest.mark.once
@pytest.mark.parametrize("damage", ["state", "text"])
def test_a_file_of_numbers_that_are_none_and_of_half_a_character(damage, tmp_path):
    """Refused when it is loaded, not in the next reply or when it is saved again."""
    chat = talked()
    chat.save(tmp_path / "a.chat")
    with open_safetensors(tmp_path / "a.chat") as tensors:
        arrays, metadata = {name: np.array(tensors[name]) for name in tensors}, tensors.metadata
    if damage == "state":
        for name in arrays:
            if name.endswith("wkv"):
                arrays[name][..., 0] = np.nan
    else:
        text = arrays["chat"].tobytes().replace(b"Hello", b"\\ud800")
        arrays["chat"] = np.frombuffer(text, np.uint8)
    metadata = {name: metadata[name] for name in ("format", "version")}
    write_safetensors(tmp_path / "b.chat", arrays, metadata=metadata)
    with pytest.raises(ValueError, match="cannot be gone on with"):
        Chat.load(tmp_path / "b.chat", chat.rwkv)
