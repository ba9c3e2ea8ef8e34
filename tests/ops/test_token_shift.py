"""The predecessor of a token is the last real token before it, whatever is masked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bert4keras_rwkv.ops.token_shift import shift_rows, token_shift
from tests.gradients import gradients, quick

B, D = 3, 2


def truth(x, last, present, reset, start):
    previous, last = np.zeros_like(x), last.copy()
    for b, t in np.ndindex(x.shape[:2]):
        if present[b, t]:
            previous[b, t] = start if reset[b, t] else last[b]
            last[b] = x[b, t]
    return previous, last


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    T=st.sampled_from([1, 5, 17]),
    masked=st.booleans(),
    resets=st.booleans(),
    tuned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_predecessors(T, masked, resets, tuned, seed):
    """Exact: tokens are moved, not computed."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((B, T, D)).astype("float32")
    last = generator.standard_normal((B, D)).astype("float32")
    start = generator.standard_normal(D).astype("float32") if tuned else None
    present = generator.random((B, T)) < 0.6 if masked else None
    reset = generator.random((B, T)) < 0.3 if resets else None
    if masked:
        present[0] = False
    seen = np.ones((B, T), bool) if present is None else present
    begins = np.zeros((B, T), bool) if reset is None else reset
    rows = None if present is None or T == 1 else quick(shift_rows)(present, reset)
    got = quick(token_shift)(ops.convert_to_tensor(x), last, present, reset, start, rows)
    previous, new = truth(x, last, seen, begins, 0.0 if start is None else start)
    np.testing.assert_array_equal(ops.convert_to_numpy(got[0])[seen], previous[seen])
    np.testing.assert_array_equal(ops.convert_to_numpy(got[1]), new)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_flow_to_the_predecessor(masked, rng):
    x, last = rng.standard_normal((1, 4, D)).astype("float32"), np.zeros((1, D), "float32")
    present = np.array([[True, False, True, True]]) if masked else None

    def loss(x, last):
        rows = shift_rows(present) if masked else None
        previous, new = token_shift(x, last, present, rows=rows)
        return ops.sum(previous[:, 3]) + 10.0 * ops.sum(previous[:, 0]) + 100.0 * ops.sum(new)

    dx, dlast = gradients(loss, [x, last])
    assert dx[0, :, 0].tolist() == [0, 0, 1, 100]
    assert dlast[0, 0] == 10
