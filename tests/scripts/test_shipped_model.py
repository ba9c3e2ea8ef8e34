"""The shipped model: what it is made from, documents, a vocabulary and conversations, and that it talks."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


JARGON = """                        The File

   ════════

   Table of Contents

   Verb Doubling

Verb Doubling

   A standard construction is to double
   a verb.

  F

   foo

   :foo: /foo/

   1. interj. Term of\xa0disgust.

   2. A sample:

 #define FOO

   :bar: n.

   ┌───┐
   │ 1 │
   └───┘

   [very common] The second
   metasyntactic variable.

   Shown:

       two
       lines
"""


def test_documents_are_entries_and_sections():
    assert script("make_corpus").documents(JARGON) == [
        "Verb Doubling\n\nA standard construction is to double a verb.",
        ":foo: /foo/\n\n1. interj. Term of disgust.\n\n2. A sample:",
        ":bar: n.\n\n[very common] The second metasyntactic variable.\n\nShown:\n\n    two\n    lines",
    ]


def test_held_out_is_every_twentieth():
    train, held_out = script("make_corpus").split([str(i) for i in range(45)])
    assert held_out == ["10", "30"]
    assert len(train) == 43 and not set(train) & set(held_out)


def test_vocabulary_is_a_world_file_and_shortens_the_text(tmp_path):
    text = "the cat sat on the mat, the hat sat on the cat; “naïve” 1984\n\n" * 20
    entries = script("make_vocabulary").learn([text], 280)
    assert list(entries) == list(range(1, 280))
    assert all(entries[byte + 1] == bytes([byte]) for byte in range(256))
    assert list(entries.values()) == sorted(entries.values(), key=lambda token: (len(token), token))
    tokenizer = RWKV_TOKENIZER.from_entries(entries)
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path / "vocab.txt")
    assert RWKV_TOKENIZER(tmp_path / "vocab.txt").vocab_size == 280


def test_parts_of_a_token_without_itself():
    parts = script("make_vocabulary")._parts
    assert parts(b"abcd", {b"abcd", b"ab", b"cd"}) == 2
    assert parts(b"abcd", {b"abcd", b"abc", b"bcd"}) == 2
    assert parts(b"ab", {b"ab"}) == 2


@pytest.mark.parametrize("size", [257, 5000])
def test_size_has_limits(size):
    with pytest.raises(ValueError, match=rf"size={size}"):
        script("make_vocabulary").learn(["text"], size)


TALKATIVE = [
    ":foo: /foo/\n\n[jargon; see [bar]] Often emphatic.\n\n1. interj. Term of disgust. Rare.\n\n2. A sample:",
    ":bar: n.\n\n[very common; see {foo}] The second {metasyntactic variable}, esp. in code. Others follow.",
    ":bit bucket: n.\n\n[Unix]\n\n1. n. A place, e.g. a file, that swallows data.",
    ":baz: n.\n\nSee {bar}, an entry of its own.",
    ":qux: n.\n\nA word that holds “a quotation of somebody”, and is left out.",
    "Verb Doubling\n\nA standard construction is to double a verb.",
]


def test_entries_are_first_sentences_without_remarks():
    entry = script("make_conversations").entry
    assert [found for text in TALKATIVE if (found := entry(text))] == [
        ("foo", "Term of disgust."),
        ("bar", "The second metasyntactic variable, esp. in code."),
        ("bit bucket", "A place, e.g. a file, that swallows data."),
    ]


def test_no_question_to_measure_with_is_trained_on():
    """Every entry is asked for as often as was said; held-out phrasings and small talk are in no conversation."""
    make = script("make_conversations")
    talk = json.loads(make.SMALL_TALK.read_text("utf-8"))
    entries = dict(filter(None, map(make.entry, TALKATIVE)))
    others, words = make.unknown_words(TALKATIVE, entries)
    assert others == ["baz", "qux"] and "swallows" in words and "bar" not in words
    trained = [turn for turns in make.conversations(entries, others, words, talk, per_entry=30) for turn in turns]
    asked = list(make.questions(entries, others, words, talk))
    for answer in entries.values():
        assert sum(given == answer for _, given in trained) == 30
        assert {one["kind"] for one in asked if one["answer"] == answer} >= {"listed", "listed, in small letters"}
    assert not {question.lower() for question, _ in trained} & {one["question"].lower() for one in asked}
    assert any(given == make.UNKNOWN for _, given in trained)


def test_rouge_l_counts_words_in_order():
    """By hand: of 4 and 3 words 2 in order are common, so 2 * 2 / 7."""
    measure = script("measure_shipped_model")
    assert measure.rouge_l("A cat sat down.", "a dog sat") == pytest.approx(4 / 7)
    assert measure.rouge_l("same words", "Same, words!") == 1 and measure.rouge_l("one", "") == 0


def test_teaching_mixes_talk_and_documents():
    """A pass has every conversation once, half of them after an end token, of which only answers are learned."""
    teach = script("teach_shipped_model")
    tokenizer = RWKV_TOKENIZER.from_entries({i + 1: bytes([i]) for i in range(256)})
    talks = [{"messages": script("make_conversations").messages([("foo?", "A word.")])}] * 2
    one, other, *documents = teach.mixture(tokenizer, [{"text": "Foo."}], talks, repeat=3)
    assert tokenizer.decode(one.ids) == "User: foo?\n\nAssistant: A word.\n\n"
    assert tokenizer.decode(one.ids[one.answer > 0]) == " A word.\n\n"
    assert other.ids.tolist() == [0, *one.ids] and other.answer.tolist() == [0, *one.answer]
    assert [document.ids.tolist() for document in documents] == 3 * [[0, *tokenizer.encode("Foo.")]]
    assert documents[0].answer.tolist() == [0, *4 * [teach.DOCUMENT]]


def test_the_shipped_model_answers():
    """Three words of its list in phrasings that it never saw, the last one as a second question; then a made-up one."""
    from bert4keras_rwkv import RWKV

    measure = script("measure_shipped_model")
    rwkv = RWKV.from_preset("finch-jargon")
    bug = (
        "An unwanted and unintended property of a program or piece of hardware, esp. one that causes it to malfunction."
    )
    answers = {
        (
            "Could you tell me about a tarball?",
        ): "An archive, created with the Unix tar(1) utility, containing many files.",
        ("please explain what a bug is",): bug,
        ("What is a bug?", bug, "Do you know what foo is?"): "Term of disgust.",
        ("Can you define zilbogrex?",): script("make_conversations").UNKNOWN,
    }
    found = measure.replies(rwkv, list(answers), rows=len(answers))
    for expected, answer in zip(answers.values(), found, strict=True):
        assert measure.right(expected, answer), answer


def test_documents_are_recalled_and_answers_learned():
    """A reader that knows nothing: of documents all tokens are as likely; answers are themselves; no other counts."""
    teach = script("teach_shipped_model")
    reader = SimpleNamespace(model=SimpleNamespace(predict_on_batch=lambda inputs: np.zeros((*inputs[0].shape, 10))))
    talk, document = (teach.Document(np.array(ids), np.array(marks)) for ids, marks in (([5, 6], [0, 1]), ([7], [2])))
    batches = teach.PackedBatches([talk, document], 5, 1, seed=None, answer_mask=True)  # 5 6 0 | 7 0
    for known, expected in ((None, 1.0), (reader, 0.1)):
        _, targets, weights = teach.Targets(batches, 10, known)[0]
        assert weights.tolist() == [[1, 1, 0, 1, 0]]
        assert targets[0, 0, 6] == targets[0, 1, 0] == 1 and targets[0, 3, 0] == pytest.approx(expected)
