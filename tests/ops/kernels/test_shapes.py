"""What a recurrence takes, whatever form runs: one row for all, a sentence for what does not fit, NaN that passes."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import native, why_not
from bert4keras_rwkv.ops.wkv4 import wkv4
from bert4keras_rwkv.ops.wkv5 import wkv5
from bert4keras_rwkv.ops.wkv6 import wkv6
from bert4keras_rwkv.ops.wkv7 import wkv7
from tests.ops.kernels.no_numbers import same_ones_are_none, slopes

of_kernels = pytest.mark.skipif(keras.backend.backend() not in ("jax", "torch"), reason="pure ops run there")
FUNCTIONS = {"wkv4": wkv4, "wkv6": wkv6, "wkv7": wkv7}
NAMES = sorted(FUNCTIONS)


@of_kernels
@pytest.mark.parametrize("name", NAMES)
def test_one_state_and_one_mask_for_all_rows(name, rng):
    """As if they had been repeated; the gradient of the state is the sum over the rows. 2e-5: as `check_kernels`."""
    B, T = 3, 7
    xs, state, start = inputs(rng, name, (B, T, 2, 8))
    state, start = state[:1], start[None]
    present, reset = rng.random((1, T)) > 0.3, rng.random((1, T)) > 0.6
    weights = rng.standard_normal(xs[0].shape), rng.standard_normal((B, *state.shape[1:]))
    weights = [x.astype("float32") for x in weights]

    def repeated(*tensors):
        *xs, state, start = tensors
        given = (ops.repeat(x, B, axis=0) for x in (state, present, reset, start))
        return FUNCTIONS[name](*xs, *given, kernel="loop")

    forms = {
        kernel: lambda *x, kernel=kernel: FUNCTIONS[name](*x[:-1], present, reset, x[-1], kernel=kernel)
        for kernel in ("native", "ops", "loop")
    }
    forms["alone"] = lambda *x: native(name, x[:-2], x[-2], present, reset, x[-1])
    want = slopes(repeated, weights, (*xs, state, start))
    for form in forms.values():
        for got, expected in zip(slopes(form, weights, (*xs, state, start)), want, strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-5 * max(np.abs(expected).max(), 1.0))


@pytest.mark.parametrize("kernel", ["ops", pytest.param("native", marks=of_kernels)])
@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_a_sentence(name, kernel, rng):
    """The same of every form: all that was expected, and came."""
    xs, state, start = inputs(rng, name, (2, 5, 2, 8))
    first = "k" if name == "wkv4" else "r"
    mask = np.ones((2, 5), bool)
    wrong = [
        ((xs[0][0], *xs[1:]), state, mask, start),
        ((xs[0][:, :4], *xs[1:]), state, mask, start),
        (xs, state[0], mask, start),
        (xs, np.concatenate([state, state]), mask, start),
        (xs, state[..., :3], mask, start),
        (xs, state, mask[:, :4], start),
        (xs, state, mask[0], start),
        (xs, state, mask, start[..., :3]),
        ((*xs[:-1], xs[-1][..., :3]), state, mask, start),
    ]
    for xs, state, mask, start in wrong:
        with pytest.raises(ValueError, match=rf"^{name} takes {first} \(B, T, .*\. Received: {first} \(") as caught:
            FUNCTIONS[name](*xs, state, mask, mask, start, kernel=kernel)
        assert f"present {mask.shape}, reset {mask.shape}, start {start.shape}." in str(caught.value)


@pytest.mark.parametrize("which", [0, 3])
def test_of_wkv5_too(which, rng):
    """Before its decay is made one for every token."""
    (r, w, k, v, u), state, _ = inputs(rng, "wkv6", (2, 5, 2, 8))
    given = [r, k, v, w[0, 0]]
    given[which] = given[which][0]
    r, k, v, w = given
    w = w if which != 3 else np.ones((5, 7), "float32")
    with pytest.raises(ValueError, match=r"^wkv5 takes r \(B, T, .*\. Received: r \("):
        wkv5(r, w, k, v, u, state)


@of_kernels
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("where", range(5))
def test_no_number_passes_backwards_as_in_the_loop(where, value, masked, rng):
    """Of RWKV-4: in k, v, w, u or the state, one number that is none; the same gradients are none."""
    same_ones_are_none(where, value, masked, rng)


@pytest.mark.parametrize("kernel", ["native", "ops", "loop"])
@pytest.mark.parametrize(("rows", "tokens"), [(0, 5), (2, 0), (0, 0)])
def test_no_rows_or_no_tokens(rows, tokens, kernel):
    """Nothing is computed, and the state comes out as it went in."""
    if kernel == "native" and why_not() is not None:
        pytest.skip("no native kernels here")
    x, state = ops.zeros((rows, tokens, 2, 4)), ops.ones((rows, 2, 4, 4))
    of_channels = ops.zeros((rows, tokens, 8))
    several = [
        wkv6(x, x, x, x, ops.zeros((2, 4)), state, kernel=kernel),
        wkv7(x, x, x, x, x, x, state, kernel=kernel),
        wkv4(of_channels, of_channels, ops.zeros((8,)), ops.zeros((8,)), ops.ones((rows, 3, 8)), kernel=kernel),
    ]
    for y, last in several:
        assert tuple(y.shape)[:2] == (rows, tokens) and last.shape[0] == rows
        assert (ops.convert_to_numpy(last) == 1).all()
