"""The worked examples of both dialects, and their counts against plain counting."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.generation.penalties import forbid, forbid_again, pace, penalise_frequency, penalise_repetition
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.ops.compile import compiled


def repetition(logits, ids, position, penalty=1.2, window=None, count_range=None):
    run = compiled(lambda *args: penalise_repetition(*args, count_range))
    rows = len(ids)
    logits = np.broadcast_to(np.asarray(logits, "float32"), (rows, np.shape(logits)[-1]))
    position = np.broadcast_to(np.asarray(position, "int32"), (rows,))
    values = Sampling(penalty=penalty, penalty_window=window).values(1)
    tensors = logits, np.asarray(ids, "int32"), position, values["penalty"], values["penalty_window"]
    return ops.convert_to_numpy(run(*tensors))


def test_worked_examples():
    """Penalty 1.2: logit 2 with range [2, 5] seen three times -> 2 / 1.2^3, once -> 2; logit -2 seen twice -> -2.88."""
    got = repetition([1, 2, 2, 2, -2], [[1, 2, 1, 1, 4, 4, 0, 0]], 6, count_range=(2, 5))
    np.testing.assert_allclose(got, [[1, 2 / 1.2**3, 2, 2, -2 * 1.2**2]], rtol=1e-6)
    assert got[0, 1] == pytest.approx(1.1574, abs=1e-4) and got[0, 4] == pytest.approx(-2.88)


def test_padding_never_counts():
    """The zeros behind the text are no tokens; a zero in it is one."""
    assert repetition([2.0, 2.0], [[1, 1, 0, 0]], 2)[0].tolist() == pytest.approx([2, 2 / 1.2])
    assert repetition([2.0, 2.0], [[1, 0, 0, 0]], 2)[0].tolist() == pytest.approx([2 / 1.2, 2 / 1.2])


@pytest.mark.parametrize("fill", [-1, 3, 2**31 - 1, -(2**31)])
def test_what_fills_the_buffer_is_ignored(fill, rng):
    """Any number may stand behind the texts: rows of other texts, and other ids, keep their logits. 3 is V."""
    logits, position = np.ones((3, 3), "float32"), np.array([2, 4, 0], "int32")
    ids = np.array([[1, 1, fill, fill], [2, 0, 2, 2], [fill] * 4], "int32")
    want = [[1, 0.5, 1], [0.5, 1, 0.5], [1, 1, 1]]
    assert repetition(logits, ids, position, penalty=2.0).tolist() == want
    run = compiled(penalise_frequency)
    half, none, one = (np.full(1, x, "float32") for x in (0.5, 0.0, 1.0))
    got = run(logits, ids, np.zeros(3, "int32"), position, half, none, one)
    assert ops.convert_to_numpy(got).tolist() == want


def test_without_a_range_counts_do_not_matter():
    got = repetition([1.0, 1, 1], [[0, 0, 0, 1, 2, 2]], 4)
    np.testing.assert_allclose(got, [[1 / 1.2, 1 / 1.2, 1]], rtol=1e-6)


@pytest.mark.parametrize(("position", "first", "last"), [(4, 0, 3), (8, 4, 7), (11, 4, 10), (1, 0, 0), (3, 0, 2)])
def test_window_is_two_blocks(position, first, last):
    """L = 12, W = 4: writing position 4 looks at 0..3, 8 at 4..7, 11 at 4..10."""
    got = repetition(np.ones(12), [range(12)], position, penalty=2.0, window=4)[0]
    assert np.flatnonzero(got == 0.5).tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("window", [None, 2, 6])
def test_counts_are_those_of_plain_counting(window, rng):
    B, L, V = 5, 24, 7
    logits, ids = rng.normal(size=(B, V)).astype("float32"), rng.integers(0, V, (B, L))
    position = rng.integers(0, L + 1, B)
    want = logits.copy()
    for b in range(B):
        begin = max(position[b] // window - 1, 0) * window if window else 0
        count = np.bincount(ids[b, begin : position[b]], minlength=V)
        n = np.where(count >= 2, np.minimum(count, 3), 0)
        want[b] = np.where(want[b] > 0, want[b] / 1.5**n, want[b] * 1.5**n)
    np.testing.assert_allclose(repetition(logits, ids, position, 1.5, window, (2, 3)), want, rtol=1e-5)


@pytest.mark.parametrize("free", [(), (2, 5)])
def test_frequency_is_the_loop_of_the_rwkv_package(free, rng):
    """Counts kept step by step: every count decays, then the new token's grows. Prompt tokens do not count."""
    B, L, V = 3, 10, 6
    presence, frequency, decay = (np.array(x, "float32") for x in ([0.3], [0.4], [0.9]))
    ids, start = rng.integers(0, V, (B, L)).astype("int32"), np.array([0, 3, 10], "int32")
    run = compiled(lambda *args: penalise_frequency(*args, free))
    logits = rng.normal(size=(B, V)).astype("float32")
    counts = [{} for _ in range(B)]
    for step in range(L):
        position = np.minimum(start + step, L).astype("int32")
        want = logits.copy()
        for b in range(B):
            for token, count in counts[b].items():
                want[b, token] -= presence[0] + count * frequency[0]
        got = ops.convert_to_numpy(run(logits, ids, start, position, presence, frequency, decay))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        for b in range(B):
            if position[b] < L:
                counts[b] = {token: count * 0.9 for token, count in counts[b].items()}
                token = ids[b, position[b]]
                counts[b][token] = counts[b].get(token, 0.0) + (token not in free)


def test_forbidden_ids_are_impossible():
    got = ops.convert_to_numpy(forbid(ops.ones((2, 4)), (1, 3)))
    assert got.tolist() == [[1, -np.inf, 1, -np.inf]] * 2


def test_the_soft_length_is_that_of_chatrwkv():
    """Turn 0 of a reply: forbidden; 1 to 40: (i - 40) / 10; to 150: 0; later min(3, (i - 150) / 4)."""
    turns = np.array([0, 1, 20, 40, 41, 150, 152, 162, 500], "int32")
    newline = Sampling(newline_id=2).values(1)["newline"]
    got = ops.convert_to_numpy(compiled(pace)(np.zeros((9, 4), "float32"), turns, newline))
    np.testing.assert_allclose(got[:, 2], [-np.inf, -3.9, -2, 0, 0, 0, 0.5, 3, 3], rtol=1e-6)
    assert not got[:, [0, 1, 3]].any()


def test_only_the_token_before_is_forbidden_again():
    got = compiled(forbid_again)(np.ones((3, 4), "float32"), np.array([1, 2, -1], "int32"), np.array([[1, 3, -1, -1]]))
    assert np.argwhere(np.isinf(ops.convert_to_numpy(got))).tolist() == [[0, 1]]
