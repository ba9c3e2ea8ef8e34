"""A state that stands for a prompt: what is measured is the divergence, it falls, and only the state trains."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.training.distil import distil_prompt
from tests.models.small import small_model, texts

pytestmark = pytest.mark.once

PROMPT = [7, 3, 11, 29, 5]
OPTIONS = {"length": 7, "batch_size": 2, "verbose": 0}


def distributions(rwkv, ids, state):
    """log softmax of the logits after each of ids (T,), float64, begun in a state of one row."""
    logits = ops.convert_to_numpy(rwkv.forward(ids[None], state)[0])[0].astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergence(rwkv, prompt, rows, state):
    """Mean KL (nats) of what `state` predicts over rows from what the prompt does, read token by token without training
    code.
    """
    zero = RWKVState.zeros(rwkv.config)
    total = count = 0
    for ids in rows:
        behind = distributions(rwkv, np.concatenate([prompt, ids]), zero)[len(prompt) :]
        own = distributions(rwkv, ids, state)
        total, count = total + (np.exp(behind) * (behind - own)).sum(), count + len(ids)
    return total / count


@pytest.mark.on("torch")
@pytest.mark.parametrize("version", [pytest.param("4", marks=pytest.mark.slow), "6"])
def test_what_is_measured_is_the_divergence_and_it_falls(version, rng):
    """1e-4: of float32 logits. Rows of 7 and 4 tokens count by their tokens; the base weights stay, bit for bit."""
    rwkv, rows = small_model(version, num_hidden_layers=1), list(texts(rng, 4, 7))
    held = [rows[0], rows[1][:4]]
    weights = {name: np.array(array) for name, array in rwkv.weights().items()}
    found = distil_prompt(rwkv, PROMPT, rows, held_out=held, steps=8, learning_rate=0.1, **OPTIONS)
    assert found.before == pytest.approx(divergence(rwkv, PROMPT, held, RWKVState.zeros(rwkv.config)), rel=1e-4)
    assert found.after == pytest.approx(divergence(rwkv, PROMPT, held, rwkv.tuned_state()), rel=1e-4)
    assert found.after < found.before and found.losses[-1] < found.losses[0]
    assert not rwkv.tuned_state().shift.any()
    for name, array in rwkv.weights().items():
        np.testing.assert_array_equal(array, weights[name])


def test_the_state_behind_a_prompt_is_the_prompt(rng):
    """With the last inputs there is nothing to learn; without them there is."""
    rows = list(texts(rng, 4, 7))
    options = {"texts": rows, "start": "prompt", "steps": 0, **OPTIONS}
    assert distil_prompt(small_model(num_hidden_layers=1), PROMPT, time_shift_tuning=True, **options).before < 1e-7
    assert distil_prompt(small_model(num_hidden_layers=1), PROMPT, **options).before > 1e-4


@pytest.mark.on("torch")
def test_several_prompts(rng):
    """What is measured is the mean of the divergences from each."""
    rwkv, held, prompts = small_model(num_hidden_layers=1), list(texts(rng, 2, 7)), [PROMPT, [2, 9]]
    found = distil_prompt(rwkv, prompts, held, held_out=held, steps=0, **OPTIONS)
    want = np.mean([divergence(rwkv, prompt, held, rwkv.tuned_state()) for prompt in prompts])
    assert found.after == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    "misuse, message",
    [
        (lambda r: distil_prompt(r, [[]]), "at least one token"),
        (lambda r: distil_prompt(r, []), "at least one prompt"),
        (lambda r: distil_prompt(r, PROMPT, start="none"), "`start` is one of"),
        (lambda r: distil_prompt(r, PROMPT, [[1, 2]]), "at least 2"),
        (lambda r: distil_prompt(r, RWKVState.zeros(r.config)), "give `texts`"),
        (lambda r: (r.enable_lora(2), distil_prompt(r, PROMPT)), "LoRA is on"),
    ],
)
def test_misuse_is_told(misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse(small_model(num_hidden_layers=1))
