"""Every form of the RWKV-6 recurrence is the recurrence, forward and backward, for every decay."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from bert4keras_rwkv.ops.wkv6 import wkv6, wkv6_chunked, wkv6_loop, wkv6_step
from tests.gradients import BACKEND, compile_on, gradients, quick
from tests.ops import numpy_wkv6

B, H, N = 2, 2, 4

SLOW, FAST = np.log(1e-6), np.log(60)
# Log decays (B, T, N) of one head each: the extremes of what a model can ask for, and mixtures of them.
DECAYS = {
    "-1e-6": lambda g, s: np.full(s, -1e-6),
    "-1e-3": lambda g, s: np.full(s, -1e-3),
    "-1": lambda g, s: np.full(s, -1.0),
    "-20": lambda g, s: np.full(s, -20.0),
    "-60": lambda g, s: np.full(s, -60.0),
    "mixed by token": lambda g, s: -np.exp(g.uniform(SLOW, FAST, (*s[:2], 1))) * np.ones(s),
    "mixed by channel": lambda g, s: -np.exp(g.uniform(SLOW, FAST, s[2])) * np.ones(s),
    "mixed": lambda g, s: -np.exp(g.uniform(SLOW, FAST, s)),
    "walls among slow ones": lambda g, s: np.where(g.random(s) < 0.05, -60.0, -1e-5),
    "usual": lambda g, s: -np.exp(g.normal(-1, 1.5, s)),
}


def inputs(generator, T, heads=H, size=N, batch=B, decays=("usual",)):
    """r, w, k, v, u, state as float32; head i decays by decays[i], the last of them for the rest."""
    shape = (batch, T, heads, size)
    r, k, v = (generator.standard_normal(shape) for _ in range(3))
    patterns = [*decays, *[decays[-1]] * heads][:heads]
    w = np.stack([DECAYS[name](generator, (batch, T, size)) for name in patterns], axis=2)
    u, state = generator.standard_normal((heads, size)), generator.standard_normal((batch, heads, size, size))
    return [x.astype("float32") for x in (r, w, k, v, u, state)]


def error(got, want):
    """Largest error over the largest absolute answer."""
    got = ops.convert_to_numpy(got)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)


def errors_by_head(got, want, axes):
    """`error` of each tensor and head, each head with a decay of its own. axes: where the heads are in each tensor."""
    return {
        (i, name): error(np.take(ops.convert_to_numpy(g), h, axis), np.take(w, h, axis))
        for i, (g, w, axis) in enumerate(zip(got, want, axes, strict=True))
        for h, name in enumerate(DECAYS)
        if np.abs(np.take(w, h, axis)).max() > 1e-20
    }


@pytest.mark.parametrize("form", [wkv6_loop, wkv6_chunked])
def test_accurate_for_every_decay(form, rng):
    """5e-6 of a float64 loop: float32 sums of some hundred terms, and nothing else is lost."""
    args = inputs(rng, 70, heads=len(DECAYS), decays=tuple(DECAYS))
    errors = errors_by_head(compile_on(form)(*args), numpy_wkv6.wkv6(*args), (2, 1))
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize("with_resets", [False, True])
def test_gradients_for_every_decay(with_resets, rng):
    """1e-5 of the float64 gradient, initial state and tuned start state too, with resets inside a chunk."""
    T, heads = 70, len(DECAYS)
    args = inputs(rng, T, heads=heads, decays=tuple(DECAYS))
    dy = rng.standard_normal((B, T, heads, N)).astype("float32")
    dstate = rng.standard_normal((B, heads, N, N)).astype("float32")
    reset = None
    if with_resets:
        args.append(rng.standard_normal((heads, N, N)).astype("float32"))
        reset = rng.random((B, T)) < 0.1
        reset[0, 0], reset[1, :40] = True, False

    def loss(*args):
        y, state = wkv6_chunked(*args[:6], reset=reset, start=args[6] if with_resets else None)
        return ops.sum(ops.multiply(y, dy)) + ops.sum(ops.multiply(state, dstate))

    want = numpy_wkv6.wkv6_gradients(dy, dstate, *args[:6], reset=reset, start=args[-1] if with_resets else None)
    errors = errors_by_head(gradients(loss, args, jit=True), want[: len(args)], (2, 2, 2, 2, 0, 1, 0)[: len(args)])
    assert max(errors.values()) < 1e-5, errors


def test_gradients_without_xla(rng):
    """TensorFlow's default on a CPU: the graph, not XLA."""
    args = inputs(rng, 40)

    def loss(*args):
        y, state = wkv6_chunked(*args)
        return ops.sum(y * y) + ops.sum(state)

    y, _ = numpy_wkv6.wkv6(*args)
    want = numpy_wkv6.wkv6_gradients(2 * y, np.ones_like(args[5]), *args)[:6]
    assert max(map(error, gradients(loss, args), want)) < 1e-5


def test_gradients_by_finite_differences(rng):
    """The float64 gradient that the other tests trust is the slope of the float64 recurrence."""
    args = [np.asarray(x, "float64") for x in inputs(rng, 5, batch=1)]
    dy, dstate = rng.standard_normal((1, 5, H, N)), rng.standard_normal((1, H, N, N))

    def value(args):
        y, state = numpy_wkv6.wkv6(*args)
        return np.sum(y * dy) + np.sum(state * dstate)

    for i, gradient in enumerate(numpy_wkv6.wkv6_gradients(dy, dstate, *args)[:6]):
        direction, h = rng.standard_normal(args[i].shape), 1e-6
        ahead, behind = ([*args[:i], args[i] + s * h * direction, *args[i + 1 :]] for s in (1, -1))
        slope = (value(ahead) - value(behind)) / (2 * h)
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-6)


LENGTHS = [1, 7, 33]


@settings(max_examples=16, deadline=None, derandomize=True)
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
    y, state = numpy_wkv6.wkv6(*args, present, reset, start)
    seen = np.ones((B, T), bool) if present is None else present
    forms = [wkv6_loop, wkv6_chunked] + [wkv6_step] * (T == 1)
    for form in forms:
        got_y, got_state = quick(form)(*args, present, reset, start)
        np.testing.assert_allclose(ops.convert_to_numpy(got_y)[seen], y[seen], atol=1e-5 * max(np.abs(y).max(), 1))
        assert error(got_state, state) < 5e-6


@pytest.mark.parametrize("cut", [1, 20, 32])
def test_split_anywhere(cut, rng):
    """Two calls with the state passed on are one call. 1e-6: the chunks lie elsewhere."""
    args = inputs(rng, 50)
    whole, end = quick(wkv6)(*args)
    first, middle = quick(wkv6)(*(x[:, :cut] for x in args[:4]), *args[4:])
    second, last = quick(wkv6)(*(x[:, cut:] for x in args[:4]), args[4], middle)
    assert error(ops.concatenate([first, second], axis=1), ops.convert_to_numpy(whole)) < 1e-6
    assert error(last, ops.convert_to_numpy(end)) < 1e-6


@pytest.mark.parametrize(("heads", "size"), [(1, 64), (3, 1), (5, 24)])
def test_any_head_size(heads, size, rng):
    args = inputs(rng, 33, heads=heads, size=size)
    assert max(map(error, quick(wkv6_chunked)(*args), numpy_wkv6.wkv6(*args))) < 5e-6


def test_half_precision_inputs_accumulate_in_float32(rng):
    args = inputs(rng, 33)
    half = [ops.cast(x, "bfloat16") for x in args[:4]]
    y, state = quick(wkv6_chunked)(*half, *args[4:])
    exact = [ops.convert_to_numpy(ops.cast(x, "float32")) for x in half]
    want = numpy_wkv6.wkv6(*exact, *args[4:])
    assert ops.dtype(y) == ops.dtype(state) == "float32"
    assert max(map(error, (y, state), want)) < 5e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow builds graphs of unknown length")
def test_unknown_length_in_a_graph(rng):
    import tensorflow as tf

    args = inputs(rng, 45)
    signature = [tf.TensorSpec((None, None, H, N))] * 4 + [tf.TensorSpec((H, N)), tf.TensorSpec((None, H, N, N))]
    got = tf.function(wkv6_chunked, input_signature=signature, autograph=False)(*map(tf.constant, args))
    assert max(map(error, got, numpy_wkv6.wkv6(*args))) < 5e-6


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is torch's")
def test_a_step_under_torch_compile(rng):
    import torch

    args = [torch.tensor(x) for x in inputs(rng, 1)]
    got = torch.compile(wkv6_step, fullgraph=True, backend="aot_eager")(*args)
    assert max(map(error, got, numpy_wkv6.wkv6(*args))) < 5e-6


def test_kernels_by_name(rng, monkeypatch):
    args = inputs(rng, 9)
    want = numpy_wkv6.wkv6(*args)
    for kernel in ("auto", "ops", "loop"):
        assert max(map(error, quick(partial(wkv6, kernel=kernel))(*args), want)) < 5e-6
    with pytest.raises(ValueError, match=r"'auto', 'ops', 'native', 'loop'"):
        wkv6(*args, kernel="cuda")
    monkeypatch.setenv("OPS_KERNEL", "2")
    with pytest.raises(ValueError, match="OPS_KERNEL is 0"):
        wkv6(*args)
