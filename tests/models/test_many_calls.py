"""One object, many calls: what was asked before leaves no trace in an answer."""

import numpy as np
import pytest

from bert4keras_rwkv.generation import loop
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.generation import toy
from tests.models.small import arrays, assert_close, small_model

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0.9, top_p=0.8),
    Sampling(top_k=7),
    Sampling(penalty=1.2, penalty_window=16),
    Sampling(presence_penalty=0.3, frequency_penalty=0.2, penalty_decay=0.9),
]
LENGTHS = [3, 9, 70]
CALLS = ["generate", "stream", "forward", "prefill", "score"]
TOKENIZER = RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)})


def new_model():
    return small_model("6", num_hidden_layers=1, vocab_size=257, tokenizer=TOKENIZER)


def test_other_end_ids_are_no_other_program(monkeypatch):
    """What ends a row is an argument, one or none as well as up to four: all that are told write up to the first of
    them, and only another width is traced.
    """
    rwkv, traces, seen = new_model(), [], []
    monkeypatch.setattr(loop, "written", lambda *args, real=loop.written: traces.append(args) or real(*args))
    text = rwkv.generate([5], max_new_tokens=12, sampling=SAMPLINGS[0], stop_token_ids=None)[1:]
    for ends in ([], [text[2]], [text[5]], [text[5], text[3]], text[4:7], [*text[6:8], 1, 2]):
        options = {"max_new_tokens": 12, "sampling": SAMPLINGS[0], "stop_token_ids": ends or None}
        want = text[: min((text.index(end) for end in ends if end in text), default=11) + 1]
        assert rwkv.generate([5], **options)[1:] == list(rwkv.stream([5], **options)) == want
        seen.append(len(traces))
    if toy.traced():
        assert seen[0] == seen[1] == seen[2] < seen[3] == seen[4] == seen[5]


def call(rwkv, random, tuned):
    """One random call; the same for the same `random`. Returns arrays."""
    method, length, batch = random.choice(CALLS), int(random.choice(LENGTHS)), int(random.integers(1, 3))
    state = [None, tuned, rwkv.prefill(random.integers(1, 257, (1, 5)))[1]][random.integers(3)]
    ids = random.integers(1, 257, (batch, min(length, 20)))
    sampling, seed = SAMPLINGS[random.integers(len(SAMPLINGS))], int(random.integers(100))
    if method in ("forward", "prefill"):
        return arrays(*getattr(rwkv, method)(ids, state))
    if method == "score":
        values, _, end = rwkv.score(ids, ids, state)
        return arrays(values, end)
    options = {"max_new_tokens": length, "sampling": sampling, "seed": seed, "state": state, "return_state": True}
    if method == "generate":
        rows, end = rwkv.generate([row[: len(row) - n] for n, row in enumerate(ids)], stop_token_ids=[9], **options)
    else:
        *row, end = rwkv.stream(ids[0], stop_texts=["e", "no"][: random.integers(3)], **options)
        rows = [row]
    return arrays(np.concatenate([[len(row), *row] for row in rows]), end)


@pytest.mark.parametrize(
    "start",
    [
        1,
        pytest.param(2, marks=pytest.mark.on("torch")),
        pytest.param(3, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_any_sequence_of_calls(start, tmp_path):
    """Each answer of a much used object is that of a fresh one, whatever methods, lengths, batches, ways of drawing,
    states and adapters came before.
    """
    random = np.random.default_rng(start)
    used = new_model()
    adapter = tmp_path / "adapter.safetensors"
    tuner = new_model()
    tuner.enable_lora(2)
    tuner.enable_state_tuning()
    for variable in tuner.backbone.trainable_variables:
        variable.assign(random.normal(0, 0.3, variable.shape).astype("float32"))
    tuner.save_adapter(adapter)
    tuned = tuner.tuned_state()
    for number in range(6):
        if number == 4:
            used.load_adapter(adapter)
        fresh = new_model()
        if number >= 4:
            fresh.load_adapter(adapter)
        seed = int(random.integers(2**31))
        got, want = (call(rwkv, np.random.default_rng(seed), tuned) for rwkv in (used, fresh))
        assert_close(got[:1], want[:1])
        assert_close(got[1:], want[1:])
