"""Every form of the RWKV-7 recurrence is the recurrence, forward and backward, for all that a model can ask for."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bert4keras_rwkv.ops.wkv7 import wkv7, wkv7_chunked, wkv7_loop, wkv7_step
from tests.gradients import BACKEND, compile_on, gradients, quick
from tests.ops import numpy_wkv7

B, H, N = 2, 2, 4
FASTEST = -np.exp(-0.5)  # log decay: what sigmoid = 1 makes


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_keys(generator, shape):
    return unit(generator.standard_normal(shape))


def one_key(generator, shape):
    """The same direction for every token."""
    return np.broadcast_to(random_keys(generator, (shape[0], 1, shape[2])), shape)


# One head each: log decay w and rate (numbers, None for random ones, or a pair that takes turns), and the directions kk
# (B, T, N).
PATTERNS = {
    "usual": (None, None, random_keys),
    "slow": (-1e-6, None, random_keys),
    "fast": (FASTEST, None, random_keys),
    "walls": ((FASTEST, -1e-6), None, random_keys),
    "nothing is forgotten": (None, 0.0, random_keys),
    "all of a key is forgotten": (None, 1.0, random_keys),
    "one key over and over": (None, 1.0, one_key),
    "one key, no decay": (-1e-6, 1.0, one_key),
    "one key back and forth": (-1e-6, 1.0, lambda g, s: one_key(g, s) * np.where(np.arange(s[1]) % 2, 1, -1)[:, None]),
    "keys of length 0": (None, None, lambda g, s: random_keys(g, s) * (g.random((*s[:2], 1)) < 0.5)),
}
# Of other models, whose decays have no bound.
BOUNDLESS = {
    "faster": (-3.0, None, random_keys),
    "nothing lasts": (-60.0, None, random_keys),
    "high walls": ((-60.0, -1e-6), None, random_keys),
    "hurdles": ((-8.0, -0.3), 1.0, one_key),
}
ALL = {**PATTERNS, **BOUNDLESS}


def inputs(generator, T, heads=H, size=N, batch=B, patterns=("usual",)):
    """r, w, k, v, a, b, state as float32; head i is of patterns[i], the last of them for the rest."""
    shape = (batch, T, heads, size)
    r, k, v = (generator.standard_normal(shape) for _ in range(3))
    w, a, b = np.zeros((3, *shape))
    for h, name in enumerate([*patterns, *[patterns[-1]] * heads][:heads]):
        decay, rate, keys = ALL[name]
        kk = keys(generator, (batch, T, size))
        fast, rates = generator.random((2, batch, T, size))
        if isinstance(decay, tuple):
            w[:, :, h] = np.where(fast < 0.2, *decay)
        else:
            w[:, :, h] = FASTEST * fast if decay is None else decay
        a[:, :, h], b[:, :, h] = -kk, kk * (rates if rate is None else rate)
    state = generator.standard_normal((batch, heads, size, size))
    return [x.astype("float32") for x in (r, w, k, v, a, b, state)]


def error(got, want):
    """Largest error over the largest absolute answer."""
    got = ops.convert_to_numpy(got)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)


def errors_by_head(got, want, axes, patterns):
    """`error` of each tensor and head, each head with a pattern of its own. axes: where the heads are in a tensor."""
    return {
        (i, name): error(np.take(ops.convert_to_numpy(g), h, axis), np.take(w, h, axis))
        for i, (g, w, axis) in enumerate(zip(got, want, axes, strict=True))
        for h, name in enumerate(patterns)
        if np.abs(np.take(w, h, axis)).max() > 1e-20
    }


@pytest.mark.parametrize(("chunk", "bounded"), [(None, False), (16, True), (64, True), (32, False)])
def test_accurate_for_every_pattern(chunk, bounded, rng):
    """5e-6 of a float64 loop: float32 sums of some hundred terms. The longest chunk has the largest exponents."""
    patterns = tuple(PATTERNS if bounded else ALL)
    args = inputs(rng, 130, heads=len(patterns), patterns=patterns)

    def form(*args):
        return wkv7_loop(*args) if chunk is None else wkv7_chunked(*args, bounded=bounded, chunk=chunk)

    errors = errors_by_head(compile_on(form)(*args), numpy_wkv7.wkv7(*args), (2, 1), patterns)
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize(("with_resets", "bounded"), [(False, True), (True, True), (True, False)])
def test_gradients_for_every_pattern(with_resets, bounded, rng):
    """1e-5 of the float64 gradient, initial state and tuned start state too, with resets inside a chunk."""
    patterns = tuple(PATTERNS if bounded else ALL)
    T, heads = 70, len(patterns)
    args = inputs(rng, T, heads=heads, patterns=patterns)
    dy = rng.standard_normal((B, T, heads, N)).astype("float32")
    dstate = rng.standard_normal((B, heads, N, N)).astype("float32")
    reset = None
    if with_resets:
        args.append(rng.standard_normal((heads, N, N)).astype("float32"))
        reset = rng.random((B, T)) < 0.1
        reset[0, 0], reset[1, :40] = True, False

    def loss(*args):
        y, state = wkv7_chunked(*args[:7], reset=reset, start=args[7] if with_resets else None, bounded=bounded)
        return ops.sum(ops.multiply(y, dy)) + ops.sum(ops.multiply(state, dstate))

    want = numpy_wkv7.wkv7_gradients(dy, dstate, *args[:7], reset=reset, start=args[-1] if with_resets else None)
    axes = (2, 2, 2, 2, 2, 2, 1, 0)[: len(args)]
    errors = errors_by_head(gradients(loss, args, jit=True), want[: len(args)], axes, patterns)
    assert max(errors.values()) < 1e-5, errors


def test_gradients_without_xla(rng):
    """TensorFlow's default on a CPU: the graph, not XLA."""
    args = inputs(rng, 40)

    def loss(*args):
        y, state = wkv7_chunked(*args)
        return ops.sum(y * y) + ops.sum(state)

    y, _ = numpy_wkv7.wkv7(*args)
    want = numpy_wkv7.wkv7_gradients(2 * y, np.ones_like(args[6]), *args)[:7]
    assert max(map(error, gradients(loss, args), want)) < 1e-5


def test_gradients_by_finite_differences(rng):
    """The float64 gradient that the other tests trust is the slope of the float64 recurrence."""
    args = [np.asarray(x, "float64") for x in inputs(rng, 5, batch=1)]
    reset, start = np.array([[False, False, True, False, False]]), rng.standard_normal((H, N, N))
    dy, dstate = rng.standard_normal((1, 5, H, N)), rng.standard_normal((1, H, N, N))

    def value(args):
        y, state = numpy_wkv7.wkv7(*args[:7], reset=reset, start=args[7])
        return np.sum(y * dy) + np.sum(state * dstate)

    args.append(start)
    for i, gradient in enumerate(numpy_wkv7.wkv7_gradients(dy, dstate, *args[:7], reset=reset, start=start)):
        direction, h = rng.standard_normal(args[i].shape), 1e-6
        ahead, behind = ([*args[:i], args[i] + s * h * direction, *args[i + 1 :]] for s in (1, -1))
        slope = (value(ahead) - value(behind)) / (2 * h)
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-6)


LENGTHS = [1, 7, 33]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    T=st.sampled_from(LENGTHS), masked=st.booleans(), resets=st.booleans(), tuned=st.booleans(), seed=st.integers(0, 99)
)
def test_masks_and_resets(T, masked, resets, tuned, seed):
    """A masked token leaves no trace, a reset begins from the start state; in every form."""
    generator = np.random.default_rng(seed)
    args = inputs(generator, T)
    present = generator.random((B, T)) < 0.6 if masked else None
    reset = generator.random((B, T)) < 0.2 if resets else None
    start = generator.standard_normal((H, N, N)).astype("float32") if tuned else None
    y, state = numpy_wkv7.wkv7(*args, present, reset, start)
    seen = np.ones((B, T), bool) if present is None else present
    forms = [wkv7_loop, wkv7_chunked] + [wkv7_step] * (T == 1)
    for form in forms:
        got_y, got_state = quick(form)(*args, present, reset, start)
        np.testing.assert_allclose(ops.convert_to_numpy(got_y)[seen], y[seen], atol=1e-5 * max(np.abs(y).max(), 1))
        assert error(got_state, state) < 5e-6


def test_gradients_of_the_form_that_is_chosen(rng):
    """Masks, resets and a tuned start state, through `wkv7` itself: 1e-5 of the float64 gradient."""
    args = [*inputs(rng, 40), rng.standard_normal((H, N, N)).astype("float32")]
    present, reset = rng.random((2, B, 40)) < np.array([0.8, 0.2])[:, None, None]
    y, _ = numpy_wkv7.wkv7(*args[:7], present, reset, args[7])

    def loss(*args):
        y, state = wkv7(*args[:7], present, reset, args[7])
        return ops.sum(ops.where(present[..., None, None], y * y, 0.0)) + ops.sum(state)

    want = numpy_wkv7.wkv7_gradients(2 * y, np.ones_like(args[6]), *args[:7], present, reset, args[7])
    assert max(map(error, gradients(loss, args, jit=True), want)) < 1e-5


@pytest.mark.parametrize("cut", [1, 20, 32])
def test_split_anywhere(cut, rng):
    """Two calls with the state passed on are one call. 1e-6: the chunks lie elsewhere."""
    args = inputs(rng, 50)
    whole, end = quick(wkv7)(*args)
    first, middle = quick(wkv7)(*(x[:, :cut] for x in args[:6]), args[6])
    second, last = quick(wkv7)(*(x[:, cut:] for x in args[:6]), middle)
    assert error(ops.concatenate([first, second], axis=1), ops.convert_to_numpy(whole)) < 1e-6
    assert error(last, ops.convert_to_numpy(end)) < 1e-6


@pytest.mark.parametrize(("heads", "size"), [(1, 64), (3, 1), (5, 24)])
def test_any_head_size(heads, size, rng):
    args = inputs(rng, 33, heads=heads, size=size)
    assert max(map(error, quick(wkv7_chunked)(*args), numpy_wkv7.wkv7(*args))) < 5e-6


def test_half_precision_inputs_accumulate_in_float32(rng):
    args = inputs(rng, 33)
    half = [ops.cast(x, "bfloat16") for x in args[:6]]
    y, state = quick(wkv7_chunked)(*half, args[6])
    exact = [ops.convert_to_numpy(ops.cast(x, "float32")) for x in half]
    assert ops.dtype(y) == ops.dtype(state) == "float32"
    assert max(map(error, (y, state), numpy_wkv7.wkv7(*exact, args[6]))) < 5e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow builds graphs of unknown length")
def test_unknown_length_in_a_graph(rng):
    import tensorflow as tf

    args = inputs(rng, 45)
    signature = [tf.TensorSpec((None, None, H, N))] * 6 + [tf.TensorSpec((None, H, N, N))]
    got = tf.function(wkv7_chunked, input_signature=signature, autograph=False)(*map(tf.constant, args))
    assert max(map(error, got, numpy_wkv7.wkv7(*args))) < 5e-6


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is torch's")
def test_a_step_under_torch_compile(rng):
    import torch

    args = [torch.tensor(x) for x in inputs(rng, 1)]
    got = torch.compile(wkv7_step, fullgraph=True, backend="aot_eager")(*args)
    assert max(map(error, got, numpy_wkv7.wkv7(*args))) < 5e-6


def test_kernels_by_name(rng):
    args = inputs(rng, 9)
    want = numpy_wkv7.wkv7(*args)
    for kernel in ("auto", "ops", "loop"):
        assert max(map(error, quick(partial(wkv7, kernel=kernel))(*args), want)) < 5e-6
    with pytest.raises(ValueError, match=r"'auto', 'ops', 'native', 'loop'"):
        wkv7(*args, kernel="cuda")
