"""LAMBADA: the last word after all the others, as RWKV-LM and lm-eval ask for it."""

import json
import math

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.evaluation import evaluate_lambada, read_lambada
from bert4keras_rwkv.evaluation.lambada import target_passage
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.models.small import small_model

ENTRIES = [bytes([byte]) for byte in range(256)] + [b" the", b"hello", b". the"]
TOKENIZER = RWKV_TOKENIZER.from_entries(dict(enumerate(ENTRIES, 1)))
THE, HELLO, DOT_THE = 257, 258, 259
SETTINGS = {"batch_size": 4, "chunk_len": 16}


@pytest.mark.backend_free
def test_lines_of_both_forms(tmp_path):
    """The text is cut at its last space; a label that the text does not end with is the word after it."""
    lines = [
        {"text": "he said hello to the"},
        {"text": "he said hello to the\n", "label": "the"},
        {"text": "he said hello to", "label": "the"},
        {"text": "with them", "label": "hem"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(read_lambada(tmp_path / "a.jsonl")) == [("he said hello to", " the")] * 3 + [("with them", " hem")]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ('{"text": "one"}', "line 2: the last word is what follows the last space"),
        ('["a b"]', "line 2: a line is"),
        ('{"text": "a b", "label": 3}', "line 2: a line is"),
    ],
)
def test_lines_of_another_form_are_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n' + line)
    with pytest.raises(ValueError, match=said):
        list(read_lambada(tmp_path / "a.jsonl"))


@pytest.mark.backend_free
def test_context_and_target_are_encoded_apart():
    """Though one token would hold the end of the one and the beginning of the other. The end token comes first."""
    assert TOKENIZER.encode("hello. the") == [HELLO, DOT_THE]
    for context, target in (("hello.", " the"), ("hello. \n", "the")):
        one = target_passage(TOKENIZER, context, target)
        assert TOKENIZER.decode(one.ids[one.counts]) == (context + target).removeprefix("hello.")
        assert one.ids[:3].tolist() == [0, HELLO, ord(".") + 1]
    assert target_passage(TOKENIZER, "", " the", after_end=False).ids.tolist() == [0, THE]
    with pytest.raises(ValueError, match="asks for nothing"):
        target_passage(TOKENIZER, "hello", "")


def test_accuracy_and_perplexity():
    """A word is right if all its tokens are the likeliest; its probability is the product of theirs. 1e-6: rounding."""
    rwkv = small_model(num_hidden_layers=1, vocab_size=TOKENIZER.vocab_size, tokenizer=TOKENIZER)

    def log_p(ids):
        """(16, V): of every id after each of these, in float64."""
        padded = np.pad(ids, (0, 16 - len(ids))).astype("int32")[None]
        logits = ops.convert_to_numpy(rwkv.forward(padded)[0])[0].astype("float64")
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def likeliest(context):
        ids = [0, *TOKENIZER.encode(context)]
        return int(log_p(ids)[len(ids) - 1].argmax())

    contexts = ["hello the hello", "the", "a text", "b", "hello hello"]
    known = {c: TOKENIZER.token_bytes(likeliest(c)) for c in contexts}
    right = [(c, token.decode()) for c, token in known.items() if token.isascii() and token.strip() == token]
    wrong = [(c, " the the") for c in contexts]
    assert right
    score = evaluate_lambada(rwkv, right + wrong, **SETTINGS)
    assert (score.examples, score.hits) == (len(right + wrong), len(right))
    assert score.accuracy == len(right) / len(right + wrong)

    def nats(context, target):
        before, asked = TOKENIZER.encode([context, target])
        return -log_p([0, *before, *asked])[np.arange(len(asked)) + len(before), asked].sum()

    mean = np.mean([nats(*pair) for pair in right + wrong])
    assert score.perplexity == pytest.approx(math.exp(mean), rel=1e-5)


def test_nothing_to_evaluate():
    rwkv = small_model(num_hidden_layers=1, vocab_size=TOKENIZER.vocab_size, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="no example"):
        evaluate_lambada(rwkv, [])
