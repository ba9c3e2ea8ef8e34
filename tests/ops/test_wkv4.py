"""Every form of the RWKV-4 recurrence is the recurrence, forward and backward, for every key, bonus and decay."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bert4keras_rwkv.ops.wkv4 import wkv4, wkv4_loop, wkv4_step
from tests.gradients import BACKEND, compile_on, gradients, quick
from tests.ops import numpy_wkv4

B, D = 2, 5

# Multiples of usual keys, bonuses and log decays: k and u of a channel with a mean of 0, w below 0.
EXTREMES = {
    "usual": (1, 1, 1),
    "never forgets": (1, 1, 1e-7),
    "forgets at once": (1, 1, 1e3),
    "large keys": (1e3, 1, 1),
    "huge keys": (1e8, 1e8, 1),
    "keys and decays": (100, 1, 100),
    "bonuses": (1, 1e3, 1),
    "nearly nothing": (1e-6, 1e-6, 1e-6),
}


def inputs(generator, T, batch=B, extremes=("usual",)):
    """k, v, w, u and a state that has read something, as float32. D channels for each of the extremes."""
    size = D * len(extremes)
    by_k, by_u, by_w = (np.repeat([EXTREMES[name][i] for name in extremes], D) for i in range(3))
    k, v = generator.standard_normal((2, batch, T, size))
    w, u = -np.exp(generator.normal(-1, 1.5, size)), generator.standard_normal(size)
    state = generator.standard_normal((batch, 3, size))
    state[:, 1] = 1 + state[:, 1] ** 2
    return [x.astype("float32") for x in (by_k * k, v, by_w * w, by_u * u, state)]


def begun(state):
    """A state that has read something beside an empty one and zeros, (3 B, 3, D)."""
    return np.concatenate([state, empty(state), empty(state, 0)])


def empty(state, maximum=-1e30):
    """The empty state like `state`."""
    nothing = np.zeros_like(state)
    nothing[:, 2] = maximum
    return nothing


def errors(got, want):
    """Largest error over the largest absolute answer: of y, numerator, denominator and maximum."""
    (y, state), (y_, state_) = (map(ops.convert_to_numpy, pair) for pair in (got, want))
    pairs = [(y, y_), *((state[:, i], state_[:, i]) for i in range(3))]
    return [np.abs(g - w).max() / max(np.abs(w).max(), 1e-30) for g, w in pairs]


def test_accurate_for_every_key_bonus_and_decay(rng):
    """2e-5 of a float64 loop: an exponent near 100 has its rounding in the exponential; and nothing overflows."""
    k, v, w, u, state = inputs(rng, 63, extremes=tuple(EXTREMES))
    args = np.tile(k, (3, 1, 1)), np.tile(v, (3, 1, 1)), w, u, begun(state)
    got, want = compile_on(wkv4_loop)(*args), numpy_wkv4.wkv4(*args)
    for i, extreme in enumerate(EXTREMES):
        channels = [[ops.convert_to_numpy(x)[..., D * i : D * (i + 1)] for x in pair] for pair in (got, want)]
        assert max(errors(*channels)) < 2e-5, extreme


def test_finite_where_numbers_overflow(rng):
    """A key, a bonus or a decay beyond all bounds leaves numbers, in the gradient too."""
    big = np.array(np.meshgrid([-np.inf, -3e38, 3e38, np.inf], [-3e38, 0, np.inf], [-np.inf, -3e38, -1])).reshape(3, -1)
    keys, u, w = big.astype("float32")
    k, v = rng.standard_normal((2, 3 * B, 7, len(u))).astype("float32")
    k[::2, 2], k[1::2] = keys, keys
    state = begun(rng.random((B, 3, len(u))).astype("float32"))

    def loss(*args):
        y, last = wkv4(*args)
        return ops.sum(y * y) + ops.sum(last[:, :2])

    found = gradients(loss, [k, v, w, u, state], jit=True)
    assert all(np.isfinite(ops.convert_to_numpy(x)).all() for x in (*quick(wkv4)(k, v, w, u, state), *found))


def check_gradients(args, dy, dstate, **options):
    """1e-5 of the float64 slope: float32 sums of some ten terms."""
    start = options.pop("start", None)
    given = args if start is None else [*args, start]

    def loss(*args):
        more = {} if start is None else {"start": args[5]}
        y, state = wkv4(*args[:5], **options, **more)
        return ops.sum(ops.multiply(y, dy)) + ops.sum(ops.multiply(state, dstate))

    want = numpy_wkv4.wkv4_gradients(dy, dstate, *args, **options, start=start)
    for got, exact in zip(gradients(loss, given, jit=True), want, strict=True):
        assert np.abs(got - exact).max() < 1e-5 * max(np.abs(exact).max(), 1)


@pytest.mark.parametrize("T", [1, 7])
def test_gradients(T, rng):
    """Of keys, values, decay, bonus and all three parts of the initial state, by y and by all parts of the last."""
    args = inputs(rng, T)
    dy, dstate = rng.standard_normal((B, T, D)), rng.standard_normal((B, 3, D))
    check_gradients(args, dy.astype("float32"), dstate.astype("float32"))


def test_gradients_with_masks_and_resets(rng):
    args, T = inputs(rng, 9), 9
    present, reset = rng.random((B, T)) < 0.7, rng.random((B, T)) < 0.3
    start = inputs(rng, 1)[4][0]
    dy = (rng.standard_normal((B, T, D)) * present[..., None]).astype("float32")
    dstate = rng.standard_normal((B, 3, D)).astype("float32")
    check_gradients(args, dy, dstate, present=present, reset=reset, start=start)


def test_gradients_where_exponents_are_equal(rng):
    """All keys 0, as its authors start training, and no bonus: half of the exponents tie. y has a gradient there."""
    k, v, w, u, state = inputs(rng, 5)
    k, u = 0 * k, 0 * u
    check_gradients([k, v, w, u, state], rng.standard_normal(v.shape).astype("float32"), np.zeros_like(state))


@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_start_can_be_trained(masked, rng):
    """Numerator and denominator of 0 under a maximum of 0 have the gradient that they have just beside 0.

    They are read as empty, so the slope is that of the sums which the state stands for.
    """
    k, v, w, u, state = inputs(rng, 6)
    present = np.arange(6) >= np.array([[2], [0]]) if masked else None
    begin, dy = empty(state, 0), rng.standard_normal(v.shape).astype("float32")
    if masked:
        dy = dy * present[..., None]

    def loss(begin):
        return ops.sum(ops.multiply(wkv4(k, v, w, u, begin, present)[0], dy))

    (got,) = gradients(loss, [begin])
    for part in (0, 1):
        for b, d in np.ndindex(B, D):
            ends = []
            for side in (1, -1):
                moved = begin.astype("float64")
                moved[b, part, d] = side * 1e-6
                ends.append(np.sum(numpy_wkv4.wkv4(k, v, w, u, moved, present)[0] * dy))
            assert got[b, part, d] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-4)


def test_gradients_of_extreme_inputs_are_finite(rng):
    k, v, w, u, state = inputs(rng, 33, extremes=tuple(EXTREMES))
    args = [np.tile(k, (3, 1, 1)), np.tile(v, (3, 1, 1)), w, u, begun(state)]
    found = gradients(lambda *args: ops.sum(ops.square(wkv4(*args)[0])), args, jit=True)
    assert all(np.isfinite(x).all() for x in found)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    T=st.sampled_from([1, 17]),
    masked=st.booleans(),
    resets=st.booleans(),
    tuned=st.booleans(),
    before=st.sampled_from(["warm", "empty", "zeros"]),
    seed=st.integers(0, 99),
)
def test_masks_and_resets(T, masked, resets, tuned, before, seed):
    """A masked token leaves no trace, a reset begins from the start state; in every form."""
    generator = np.random.default_rng(seed)
    *args, state = inputs(generator, T)
    state = {"warm": state, "empty": empty(state), "zeros": empty(state, 0)}[before]
    present = generator.random((B, T)) < 0.6 if masked else None
    reset = generator.random((B, T)) < 0.2 if resets else None
    start = inputs(generator, 1)[4][0] if tuned else None
    if masked:
        present[0] = False
    y, last = numpy_wkv4.wkv4(*args, state, present, reset, start)
    seen = np.ones((B, T), bool) if present is None else present
    for form in [wkv4_loop] + [wkv4_step] * (T == 1):
        got_y, got_last = map(ops.convert_to_numpy, quick(form)(*args, state, present, reset, start))
        assert np.isfinite(got_y).all()
        np.testing.assert_allclose(got_y[seen], y[seen], atol=1e-5 * max(np.abs(y).max(), 1))
        np.testing.assert_allclose(got_last, last, rtol=1e-5, atol=1e-5)
        if masked:
            np.testing.assert_array_equal(got_last[0], state[0])


def test_zeros_are_an_empty_state(rng):
    """Programs hand in zeros: the answers are those of a maximum of -1e30, whatever keys come."""
    args = inputs(rng, 9, extremes=["large keys"])[:4]
    state = np.zeros((B, 3, D), "float32")
    assert max(errors(quick(wkv4)(*args, state), quick(wkv4)(*args, empty(state)))) < 1e-6


def test_half_precision_inputs_accumulate_in_float32(rng):
    args = inputs(rng, 33)
    half = [ops.cast(x, "bfloat16") for x in args[:2]]
    exact = [ops.convert_to_numpy(ops.cast(x, "float32")) for x in half]
    y, state = quick(wkv4)(*half, *args[2:])
    assert ops.dtype(y) == ops.dtype(state) == "float32"
    assert max(errors((y, state), numpy_wkv4.wkv4(*exact, *args[2:]))) < 5e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow builds graphs of unknown length")
def test_unknown_length_in_a_graph(rng):
    import tensorflow as tf

    args = inputs(rng, 45)
    signature = [tf.TensorSpec((None, None, D))] * 2 + [tf.TensorSpec((D,))] * 2 + [tf.TensorSpec((None, 3, D))]
    got = tf.function(wkv4, input_signature=signature, autograph=False)(*map(tf.constant, args))
    assert max(errors(got, numpy_wkv4.wkv4(*args))) < 5e-6


def test_kernels_by_name(rng):
    args = inputs(rng, 9)
    want = numpy_wkv4.wkv4(*args)
    for kernel in ("auto", "ops", "loop"):
        assert max(errors(quick(partial(wkv4, kernel=kernel))(*args), want)) < 5e-6
    with pytest.raises(ValueError, match=r"'auto', 'ops', 'native', 'loop'"):
        wkv4(*args, kernel="cuda")
