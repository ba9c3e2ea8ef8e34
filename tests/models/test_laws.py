"""The laws of the state (exactness): parallel = recurrent = chunked = chained = padded = batched, for every version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.state import RWKVState
from tests.models.small import arrays, assert_close, lawful, scatter, small_model, texts

B, T = 2, 40


@pytest.fixture(scope="module", params=lawful("4", "7", jax=["6"]))
def version(request):
    return request.param


@pytest.fixture(scope="module")
def rwkv(version):
    return small_model(version)


@pytest.fixture(scope="module")
def warm(rwkv):
    """A state that has seen something, of two rows."""
    return rwkv.forward(texts(np.random.default_rng(1), B, T))[1]


def compacted(rwkv, ids, present, state):
    """Each row read alone without its masked tokens: logits at real tokens, and the last states."""
    logits, states = [], []
    for b in range(len(ids)):
        row, before = ids[b][present[b]][None], state[b]
        if not row.size:
            states.append(before)
            continue
        out, after = rwkv.forward(row, before)
        logits.append(ops.convert_to_numpy(out)[0])
        states.append(after)
    return np.concatenate(logits), RWKVState.stack(states)


@pytest.mark.parametrize("pieces", [[1, 39], [39, 1], [16, 16, 8], [7, 33], [1] * 40], ids=str)
def test_reading_in_parts_is_reading_at_once(rwkv, warm, pieces, rng):
    ids = texts(rng, B, T)
    want = arrays(*rwkv.forward(ids, warm))
    parts, state, at = [], warm, 0
    for length in pieces:
        logits, state = rwkv.forward(ids[:, at : at + length], state)
        parts.append(ops.convert_to_numpy(logits))
        at += length
    assert_close(arrays(np.concatenate(parts, 1), state), want)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    length=st.sampled_from([2, 13, 40]),
    side=st.sampled_from(["left", "right", "holes", "one empty row"]),
    seed=st.integers(0, 99),
)
def test_a_masked_token_does_not_exist(rwkv, warm, length, side, seed):
    """Left padding, right padding, holes, and a row without any token, in one ragged batch."""
    generator = np.random.default_rng(seed)
    ids, at = texts(generator, B, length), np.arange(length)
    count = generator.integers(1, length + 1, (B, 1))
    present = {
        "left": at >= length - count,
        "right": at < count,
        "holes": generator.random((B, length)) < 0.5,
        "one empty row": np.array([[False], [True]]) & (at >= 0),
    }[side]
    present[1, generator.integers(length)] = True
    logits, state = rwkv.forward(ids, warm, present)
    want_logits, want_state = compacted(rwkv, ids, present, warm)
    got = arrays(ops.convert_to_numpy(logits)[present], state)
    assert_close(got, arrays(want_logits, want_state))


def test_prefill_gives_the_last_real_logits(rwkv, warm, rng):
    ids = texts(rng, B, T)
    present = np.arange(T) < np.array([[40], [18]])
    logits, state = rwkv.forward(ids, warm, present)
    last = ops.convert_to_numpy(logits)[[0, 1], [39, 17]]
    for chunk in (256, 7):
        assert_close(arrays(*rwkv.prefill(ids, warm, present, chunk_len=chunk)), arrays(last, state))


def test_a_decoding_step_is_the_next_position(rwkv, warm, rng):
    ids = texts(rng, B, T)
    logits, state = rwkv.forward(ids, warm)
    _, before = rwkv.prefill(ids[:, :-1], warm)
    assert_close(arrays(*rwkv.prefill(ids[:, -1:], before)), arrays(ops.convert_to_numpy(logits)[:, -1], state))


def test_rows_do_not_touch_each_other(rwkv, warm, rng):
    ids = texts(rng, B, T)
    together = rwkv.forward(ids, warm)
    alone = rwkv.forward(ids[1:], warm[1])
    assert_close(arrays(together[0][1:], together[1][1]), arrays(*alone), bar=1e-5)


def test_a_state_of_one_row_broadcasts(rwkv, warm, rng):
    ids = texts(rng, B, T)
    repeated = warm[1].fork(B)
    assert_close(arrays(*rwkv.forward(ids, warm[1])), arrays(*rwkv.forward(ids, repeated)), bar=1e-6)


def test_kernels_agree(version, rwkv, warm, rng):
    plain = small_model(version, kernel="loop")
    ids = texts(rng, B, T)
    assert_close(arrays(*plain.forward(ids, warm)), arrays(*rwkv.forward(ids, warm)))


def test_keras_model_is_the_same_forward(rwkv, rng):
    """Right padding by id 0, no masking elsewhere: `RWKV.model` masks what `forward` is told to."""
    ids = texts(rng, B, T)
    ids[ids == 0], ids[1, 30:] = 1, 0
    logits, _ = rwkv.forward(ids, None, ids != 0)
    got = rwkv.model.predict(ids, verbose=0)
    seen = ids != 0
    np.testing.assert_allclose(got[seen], ops.convert_to_numpy(logits)[seen], atol=1e-4)


def test_state_in_and_out_of_the_keras_model(version, rwkv, rng):
    model = small_model(version, input_state=True, output_state=True, pad_token_id=None, sequence_length=8).model
    ids = texts(rng, B, 16)
    logits, end = rwkv.forward(ids)
    zero = RWKVState.zeros(rwkv.config, B)
    first, wkv, shift = model.predict([ids[:, :8], zero.wkv, zero.shift], verbose=0)
    second, wkv, shift = model.predict([ids[:, 8:], wkv, shift], verbose=0)
    assert_close([np.concatenate([first, second], 1), wkv, shift], arrays(logits, end))
    assert [x.name for x in model.inputs] == ["Input-Token", "Stack-States", "Stack-Last-X"]


def test_documents_packed_in_a_row_are_documents_alone(version, rwkv, rng):
    ids, reset = texts(rng, 1, 24), np.zeros((1, 24), "int32")
    reset[0, [0, 9, 10]] = 1
    got = small_model(version, packed=True).model.predict([ids, reset], verbose=0)
    want = [ops.convert_to_numpy(rwkv.forward(part[None])[0]) for part in np.split(ids[0], [9, 10])]
    assert_close([got], [np.concatenate(want, 1)])


SAMPLINGS = {"greedy": Sampling(temperature=0), "sampled": Sampling(temperature=0.9, top_p=0.9)}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_writing_twice_is_writing_once(rwkv, sampling, rng):
    """2m tokens in one call = m, state and seeds out and in, m more."""
    options = {"sampling": SAMPLINGS[sampling], "stop_token_ids": None, "return_state": True}
    for prompt in (texts(rng, 1, length)[0].tolist() for length in (9, 4)):
        whole, end = rwkv.generate(prompt, len(prompt) + 12, seed=3, **options)
        half, middle = rwkv.generate(prompt, len(prompt) + 6, seed=3, **options)
        rest, last = rwkv.generate(half[-1:], 7, state=middle, seed=np.array([[3, 6]]), **options)
        assert half + rest[1:] == whole
        assert_close(arrays(0 * last.wkv, last), arrays(0 * end.wkv, end))


def test_a_ragged_batch_is_written_row_by_row(rwkv, rng):
    prompts = [texts(rng, 1, length)[0].tolist() for length in (9, 4)]
    options = {"sampling": SAMPLINGS["sampled"], "stop_token_ids": None, "return_state": True}
    together, end = rwkv.generate(prompts, 21, seed=3, **options)
    for row, prompt in enumerate(prompts):
        alone, last = rwkv.generate(prompt, 21, seed=3 + row, **options)
        assert together[row] == alone
        assert_close(arrays(0 * last.wkv, end[row]), arrays(0 * last.wkv, last))


def test_the_written_text_read_at_once(rwkv, rng):
    """Greedy tokens are the parallel forward's argmax, and the state has consumed all but the last."""
    prompt = texts(rng, 1, 5)[0].tolist()
    text, state = rwkv.generate(prompt, 20, stop_token_ids=None, sampling="greedy", return_state=True)
    logits, end = rwkv.forward([text[:-1]])
    assert ops.convert_to_numpy(logits)[0].argmax(-1)[4:].tolist() == text[5:]
    assert_close(arrays(logits, state), arrays(logits, end))


def test_streaming_is_generating(version, rwkv, rng):
    """For one version with a stop token, which is none of its business."""
    prompt = texts(rng, 1, 5)[0].tolist()
    options = {"max_length": 20, "sampling": SAMPLINGS["sampled"], "seed": 11}
    options["stop_token_ids"] = [7] if version == "6" else None
    text, state = rwkv.generate(prompt, **options, strip_prompt=True, return_state=True)
    *streamed, end = rwkv.stream(prompt, **options, return_state=True)
    assert streamed == text
    assert_close(arrays(0 * state.wkv, end), arrays(0 * state.wkv, state), bar=1e-5)


def test_cache_model_continues_its_own_output(version, rng):
    """build_cache_model with state and seeds: two calls of m are one of 2m, mask_output keeping the pad id out."""
    rwkv = small_model(version, mask_output=[0])
    options = {"end_token": None, "search_mode": "topp", "k": [0.9, 10], "output_state": True, "input_seed": True}
    long = rwkv.build_cache_model([16], input_state=True, **options)
    short = rwkv.build_cache_model([8], input_state=True, **options)
    zero, seeds = RWKVState.zeros(rwkv.config, B), np.array([[5, 0], [6, 0]], "int32")
    ids = np.zeros((B, 16), "int32")
    ids[0, :3], ids[1, 5:8] = [4, 5, 6], [9, 9, 2]
    whole, *_ = long.predict([ids, zero.wkv, zero.shift, seeds], verbose=0)
    half, *middle = short.predict([ids[:, :8], zero.wkv, zero.shift, seeds], verbose=0)
    again = np.zeros((B, 8), "int32")
    again[:, 0] = half[:, -1]
    rest, *_ = short.predict([again, *middle], verbose=0)
    np.testing.assert_array_equal(np.concatenate([half, rest[:, 1:]], 1), whole[:, :15])


def test_weights_may_change_after_compiling(version, rwkv, rng):
    """Programs take the weights as arguments: new values are used by the next call."""
    model = small_model(version, seed=9)
    ids = texts(rng, B, 16)
    before = ops.convert_to_numpy(model.forward(ids)[0])
    scatter(model)
    after = ops.convert_to_numpy(model.forward(ids)[0])
    assert np.abs(after - before).max() > 0.1
    assert_close([after], [ops.convert_to_numpy(rwkv.forward(ids)[0])])
