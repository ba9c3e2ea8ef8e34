"""`chat`: by the lines of a pipe, and in a terminal as a person types."""

import dataclasses
import importlib
import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest

from bert4keras_rwkv.chat import Chat
from bert4keras_rwkv.chat.conversation import SAMPLING, SAMPLING_WITH_STATE
from bert4keras_rwkv.cli import arguments, lines
from bert4keras_rwkv.cli.chat import given_numbers
from bert4keras_rwkv.cli.generate import StatusLine
from bert4keras_rwkv.cli.screen import Screen
from bert4keras_rwkv.commands.conversation import Conversation
from bert4keras_rwkv.commands.events import Begun, Ended, Piece, Refused, Said, Table, Thinking
from bert4keras_rwkv.models import RWKV
from tests.cli.test_generate import own_words

pexpect = pytest.importorskip("pexpect")  # which there is where there are pseudo-terminals

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def masked(rwkv, but):
    """`--mask-output` that leaves the tokens of these characters."""
    kept = {rwkv.tokenizer.token_to_id(one) for one in but}
    return ["--mask-output", *(str(one) for one in range(rwkv.config.vocab_size) if one not in kept)]


@pytest.mark.on("jax")
def test_a_pipe_of_questions_gives_a_stream_of_answers(model, command, tmp_path):
    """What `Chat` replies, an empty line between two; what cannot be done is said on stderr, and it goes on."""
    lines = ["Hi", "/nonsense", "", "And you?", "\xff", f"/save {tmp_path / 'a.chat'}", "+gen a"]
    rwkv = RWKV.from_preset(model)
    given = ("--model", model, "--seed", 7, "--max-new-tokens", 9, "--presence-penalty", 0, *masked(rwkv, LETTERS))
    stdin = "\n".join(lines).encode("latin-1") + b"\n"
    code, out, said = command("chat", *given, stdin=stdin)
    assert code == 0, said
    told = own_words(said).splitlines()
    assert [line[:12] for line in told] == ["There is no ", "Say somethin", "Line 5 is no"]
    drawn = {"penalty_free": rwkv.tokenizer.parts_of(" \t0123456789"), "mask_output": masked_ids(given)}
    drawn["presence_penalty"] = 0.0  # a number like others, not the lack of one
    chat = Chat(rwkv, seed=7, max_new_tokens=9, sampling=dataclasses.replace(SAMPLING, **drawn))
    answers = [chat.reply(line) for line in ("Hi", "And you?")]
    assert out.decode().startswith("".join(f"{answer}\n\n" for answer in answers))
    assert len(out.decode().split("\n\n")[2]) == 9
    code, out, said = command("chat", "--model", model, "--load", tmp_path / "a.chat", stdin=b"/show\nMore\n")
    assert code == 0 and "2 messages, at most 9 a reply" in out.decode(), said
    assert out.decode().endswith(f"\n{chat.reply('More')}\n\n")


def masked_ids(given):
    return [int(one) for one in given[given.index("--mask-output") + 1 :]]


@pytest.mark.backend_free
def test_the_help_says_what_a_chat_draws_with():
    for name, words in arguments.CHAT_SAMPLING.items():
        numbers = [float(number) for number in re.findall(r"[\d.]+\b", words)]
        wanted = [getattr(SAMPLING, name), getattr(SAMPLING_WITH_STATE, name)]
        assert numbers == wanted[: len(numbers)] and len(set(wanted)) == len(numbers)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "given, code, said",
    [
        (["--template", "nowhere"], 2, "A template is one of"),
        (["--prompt", "nowhere.json"], 1, "nowhere.json: No such file"),
        (["--template", "nowhere.json"], 2, "There is no file 'nowhere.json'"),
        (["--load", "nowhere.chat"], 1, "nowhere.chat: No such file"),
        (["--state", "nowhere.pth"], 1, "nowhere.pth: No such file"),
        (["--load", "a.chat", "--system", "b", "--lang", "zh"], 2, "Leave out --lang, --system."),
        (["--max-penalty-range", "5", "2"], 2, "max_penalty_range"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(given, code, said, capsys):
    from bert4keras_rwkv.cli import main

    assert main(["chat", "--model", "nowhere", *given]) == code
    told = capsys.readouterr()
    assert told.out == "" and said in told.err and told.err.count("\n") == 1


@pytest.mark.on("jax")
def test_a_pipe_gets_the_whole_conversation_where_that_is_asked_for(model, command, rwkv_state):
    """With `--echo`, as the text has it; `/multiline` makes one message of several lines, the end of the pipe, too."""
    rwkv = RWKV.from_preset(model)
    given = ("--model", model, "--max-new-tokens", 9, *masked(rwkv, LETTERS), "--temperature", 0, "--state", rwkv_state)
    code, out, said = command("chat", *given, "--echo", stdin=b"Hi\n/multiline\none\ntwo\n\nmore\n")
    assert code == 0 and "drawn more gently: top_p 0.2" in said
    replies = re.split(r"\n\n(?=User: )|\n\nAssistant: ", out.decode().removeprefix("User: ").removesuffix("\n\n"))
    assert replies[::2] == ["Hi", "User: one\ntwo", "User: more"]
    code, plain, _ = command("chat", *given, stdin=b"Hi\n/multiline\none\ntwo\n\nmore\n")
    assert plain.decode() == "".join(f"{reply}\n\n" for reply in replies[1::2])


@pytest.fixture
def rwkv_state(model, tmp_path):
    rwkv = RWKV.from_preset(model)
    rwkv.save_state(rwkv.prefill([[5, 6]])[1], tmp_path / "begun.safetensors")
    return tmp_path / "begun.safetensors"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.backend_free
def test_a_zero_is_given():
    """0 is False in Python, and a temperature of 0 is greedy."""
    given = arguments.parser().parse_args(["chat", "--temperature", "0", "--presence-penalty", "0"])
    assert given_numbers(given) == {"temperature": 0.0, "presence_penalty": 0.0}


@pytest.mark.backend_free
def test_a_notice_stands_on_a_line_of_its_own(caplog):
    stream = Terminal()
    with StatusLine(stream) as line:
        line.show("loading the model")
        logging.getLogger("bert4keras_rwkv").warning("float16")
        assert stream.getvalue().endswith("loading the model\r\x1b[K")
    assert not logging.getLogger("bert4keras_rwkv").filters


@pytest.mark.backend_free
def test_who_replies_is_said_behind_a_thought(monkeypatch, capsys):
    """The line that says how long a thought is stands where a name would. One token is no tokens."""
    screen = Screen()
    screen.talking, screen._rich = True, False
    for event in (Begun("Ben:"), Thinking(1), Piece("Yes", 2), Ended(2, 9)):
        screen.show(event)
        assert capsys.readouterr().out == {Piece: "Ben: Yes", Ended: "\n"}.get(type(event), "")
    for event in (Begun("Ben:"), Ended(1, 9, True)):
        screen.show(event)
    told = capsys.readouterr()
    assert told.out == "Ben: \n" and told.err.startswith("Stopped after 1 token.\n0 tokens")


@pytest.mark.backend_free
def test_nothing_that_a_terminal_acts_upon_is_written(monkeypatch, capsys):
    """By a model, or by a file's name; a pipe gets the text as it is."""
    screen = Screen()
    screen.talking = screen._rich = False
    evil = "a\x1b[2J\u202eb"
    events = [Begun(evil), Piece(evil, 1), Ended(1, 2), Said(evil), Refused(evil), Table(evil, ((evil, evil),))]
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        screen.talking = terminal
        for event in events:
            screen.show(event)
        told = capsys.readouterr()
        assert "\x1b" not in told.err and (("\x1b" in told.out) is (not terminal))


@pytest.mark.backend_free
def test_messages_of_several_lines_where_nothing_else_is_installed(monkeypatch):
    """An empty line ends one; a command is of one line."""
    conversation = Conversation.__new__(Conversation)
    monkeypatch.setattr(Conversation, "speaker", "User:")
    given = iter(["one", "", "two", "three", "", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(given))
    typed = lines.Typed(conversation)
    conversation.multiline = False
    assert [typed.next_line() for _ in range(2)] == ["one", ""]
    conversation.multiline = True
    assert [typed.next_line() for _ in range(2)] == ["two\nthree", "/exit"]


@pytest.mark.backend_free
def test_commands_names_and_files_are_completed(tmp_path):
    prompt_toolkit = pytest.importorskip("prompt_toolkit.document")
    editor = importlib.import_module("bert4keras_rwkv.cli.editor")
    words = {"/switch": ["main", "more", "other"], "/set": ["temperature"]}
    completer = editor.CommandCompleter(SimpleNamespace(words=lambda command: words.get(command, [])))
    (tmp_path / "monday.chat").touch()

    def completed(text):
        return [one.text for one in completer.get_completions(prompt_toolkit.Document(text), None)]

    assert completed("/s") == ["/switch", "/save", "/system", "/set", "/show"] and completed("+q") == ["+qq", "+qa"]
    assert completed("/switch m") == ["main", "more"] and completed("/set temp") == ["temperature"]
    assert completed(f"/load {tmp_path}/mon") == ["day.chat"]
    assert completed("say /s") == completed("+gen /s") == completed("/s\nmore") == []


@pytest.fixture
def terminal(environment, model):
    """Start `chat` in a pseudo-terminal of some columns, with the options given; it ends with the test."""
    running = []

    def start(*given, columns=80):
        variables = {**environment, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "LANG": "C.UTF-8"}
        command = ["-m", "bert4keras_rwkv", "chat", "--model", str(model), *map(str, given)]
        running.append(
            pexpect.spawn(
                sys.executable, command, env=variables, encoding="utf-8", timeout=60, dimensions=(24, columns)
            )
        )
        return running[-1]

    yield start
    for one in running:
        one.close(force=True)


def forks(test):
    """What a pseudo-terminal needs, and JAX and Python warn of: the child is another program at once."""
    for message in ("ignore:os.fork:RuntimeWarning", "ignore:.*multi-threaded:DeprecationWarning"):
        test = pytest.mark.filterwarnings(message)(test)
    return test


def sees(person, text):
    """Wait for a text, a pattern in which a space stands for what moves, colours and breaks lines, too."""
    person.expect(text.replace(" ", r"(?:\s|\x1b\[[0-9;?]*[A-Za-z])+"))


def left(person):
    """Wait for the end. Returns the exit code."""
    person.expect(pexpect.EOF)
    person.close()
    return person.exitstatus


@forks
@pytest.mark.on("jax")
def test_a_person_types(model, terminal, tmp_path):
    """A narrow terminal, wide characters and such that go from right to left; Ctrl-C ends a reply, and the conversation
    is that of what was shown; Ctrl-C twice leaves.
    """
    rwkv, file = RWKV.from_preset(model), tmp_path / "a.chat"
    person = terminal("--seed", 3, "--max-new-tokens", 100_000, *masked(rwkv, "中é"), columns=20)
    sees(person, "twice it leaves. User:")
    person.send("你好 שלום\r")
    sees(person, "Assistant: [中é]")
    shown = person.match[0][-1]
    person.sendintr()
    sees(person, r"Stopped after \d+ tokens?\.")
    shown += re.sub(r"[^中é]", "", person.before)
    sees(person, "User:")
    person.send(f"/save {file}\r")
    sees(person, "Saved to")
    chat = Chat.load(file, rwkv)
    (turn,) = chat.history
    assert (turn.message, turn.reply) == ("你好 שלום", shown)
    assert rwkv.tokenizer.decode(chat.ids).endswith(f"{turn.message}\n\nAssistant:{shown}")
    sees(person, "User:")
    person.sendintr()
    sees(person, "once more leaves.")
    person.sendintr()
    assert left(person) == 0


@forks
@pytest.mark.on("jax")
def test_a_long_message_and_one_of_several_lines(model, terminal):
    """How far the reading is, is shown, and not in place of who speaks; Ctrl-D leaves."""
    person = terminal("--chunk-len", 32, "--max-new-tokens", 5, *masked(RWKV.from_preset(model), "中é"))
    sees(person, "User:")
    person.send("/multiline\r")
    sees(person, "An empty line")
    person.send("one\rtwo\r\r")
    sees(person, "Assistant: [中é]{5}")
    person.send("x" * 400 + "\r\r")
    sees(person, r"reading: \d+ of 4\d\d tokens")
    sees(person, "Assistant: [中é]{5}")
    sees(person, "User:")
    person.send("/show\r")
    sees(person, "2 messages")
    sees(person, "User:")
    person.sendeof()
    assert left(person) == 0
