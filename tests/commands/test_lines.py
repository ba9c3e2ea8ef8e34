"""What a line means."""

import pytest

from bert4keras_rwkv.commands.lines import COMMANDS, line_of

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    "given, command, text, numbers",
    [
        ("Hello there", None, "Hello there", {}),
        ("+", "+", "", {}),
        ("+++", "+++", "", {}),
        ("+GEN Once\nupon", "+gen", "Once\nupon", {}),
        ("+gen\nOnce", "+gen", "Once", {}),
        ("/undo", "/undo", "", {}),
        ("/set top_k 3 ", "/set", "top_k 3", {}),
        (" /undo", None, " /undo", {}),
        ("+1 for that", None, "+1 for that", {}),
        ("/usr/bin is full", None, "/usr/bin is full", {}),
        ("a -temp=0.5 b", None, "a b", {"temperature": 0.5}),
        ("-temp=0.05 -top_p=7 a", None, "a", {"temperature": 0.2, "top_p": 1.0}),
        ("a\n-temp=9\nb -top_p=-1", None, "a\n\nb", {"temperature": 5.0, "top_p": 0.0}),
        ("+ -temp=2", "+", "", {"temperature": 2.0}),
        ("+i -top_p=1e-3 go", "+i", "go", {"top_p": 0.001}),
        ("try --temp=3 and x-temp=3", None, "try --temp=3 and x-temp=3", {}),
        ("/system use -temp=3", "/system", "use -temp=3", {}),
    ],
)
def test_a_line(given, command, text, numbers):
    line = line_of(given)
    assert (line.command, line.text, line.numbers) == (command, text, numbers)


@pytest.mark.parametrize(
    "given, said",
    [
        ("/nonsense", "There is no command /nonsense. There are: + +reset +prompt"),
        ("+promt a", "There is no command +promt"),
        ("++++", "There is no command"),
        ("/exit!", "There is no command /exit!"),
        ("+gen", "needs something behind it: +gen TEXT"),
        ("/fork ", "needs something behind it: /fork NAME"),
        ("++ more", "takes nothing behind it"),
        ("a -temp=", r"-temp= is followed by a number, 0.2 to 5. Received: -temp="),
        ("a -top_p=nan", "-top_p= is followed by a number, 0 to 1"),
    ],
)
def test_what_is_no_line(given, said):
    with pytest.raises(ValueError) as error:
        line_of(given)
    assert said in str(error.value)


def test_only_saving_can_be_forced():
    assert line_of("/save! a b.chat") == ("/save", "a b.chat", {}, True, ())
    assert {"+", "+reset", "+prompt", "+gen", "+i", "+qq", "+qa", "+++", "++"} < set(COMMANDS)
