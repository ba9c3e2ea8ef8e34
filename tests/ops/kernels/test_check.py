"""Native kernels are the loop, for every instruction set; and the comparison that says so sees what is wrong."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops.kernels import check, library
from bert4keras_rwkv.ops.kernels.check import check_kernels, inputs
from bert4keras_rwkv.ops.kernels.native import native
from bert4keras_rwkv.ops.wkv4 import wkv4_loop
from bert4keras_rwkv.ops.wkv6 import wkv6_loop
from bert4keras_rwkv.ops.wkv7 import wkv7_loop
from tests.ops.kernels import quick

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() not in ("jax", "torch"), reason="pure ops run there"),
    pytest.mark.skipif(not library.SOURCES.is_dir(), reason="no sources"),
]
SHAPE = (1, 37, 2, 5)
# What is wrong, where, and what stands there instead. Each is a fault of a kind that a change could make.
FAULTS = {
    "one token too few": (
        "matrix_state.cc",
        "for (int64_t t = 0; t < shape.T; t++) {",
        "for (int64_t t = 0; t + 1 < shape.T; t++) {",
    ),
    "a state forgotten": ("matrix_state.cc", "if (s + 1 < n && (DELTA", "if (s + 2 < n && (DELTA"),
    "two states forgotten": ("matrix_state.cc", "if (s + 1 < n) leave_two", "if (s + 2 < n) leave_two"),
    "the order of two tokens": (
        "matrix_state.cc",
        "rows[j] = of_next, rows[P + j] = of_first;",
        "rows[j] = of_first, rows[P + j] = of_next;",
    ),
    "a mask dropped": (
        "matrix_state.cc",
        "x.read(xs, shape, place, t, flag & ABSENT);",
        "x.read(xs, shape, place, t, false);",
    ),
    "gradients of absent tokens": ("matrix_state.cc", "if (flag & ABSENT)\n", "if (false)\n"),
    "a state turned": (
        "matrix_state.cc",
        "turned(N, P, dlast.floats() + item * square, G);",
        "exchange<IN>(N, P, dlast.to() + item * square, G);",
    ),
    "no gradient of the start": (
        "matrix_state.cc",
        "dstart.to() + item * square, true);",
        "dstart.to() + item * square, false);",
    ),
    "the state of another head": (
        "matrix_state.cc",
        "exchange<IN>(N, P, state.to() + item * square, S);",
        "exchange<IN>(N, P, state.to() + from * square, S);",
    ),
    "a sum too small": ("vectors.h", "return low + high;", "return low;"),
    "the state read after it is written": (
        "wkv4.cc",
        "y[c] = read(S[c], k[c], v[c], given.u[c]);",
        "y[c] = read(written(S[c], k[c], v[c], given.w[c]), k[c], v[c], given.u[c]);",
    ),
    "a branch without a gradient": ("wkv4.cc", "dk += slope + choose(ahead, vec{}, g.p);", "dk += slope;"),
    "an empty state scaled": ("wkv4.cc", "return {g.a * scale, g.b * scale,", "return {g.a, g.b,"),
}


@pytest.mark.cpu
@pytest.mark.parametrize(
    "shape",
    [*(pytest.param(x, marks=pytest.mark.on("torch")) for x in ((2, 1, 1, 16), (1, 32, 2, 5))), (2, 37, 2, 64)],
    ids=str,
)
@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
def test_every_kernel_is_the_loop(name, shape):
    """2e-5 of the largest number, as `check_kernels` says; it is about 5e-7."""
    findings = list(check_kernels(names=[name], shapes=[shape]))
    assert {finding.level for finding in findings} == set(library.library().levels())
    assert not [finding for finding in findings if not finding.right]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
def test_the_loop_multiplies_whole_numbers(monkeypatch):
    """On a GPU, too, where JAX shortens the factors of a product unless it is told not to."""
    import jax

    seen = []

    def loop(*args):
        seen.append(jax.config.jax_default_matmul_precision)
        return wkv6_loop(*args)

    monkeypatch.setitem(check.LOOPS, "wkv6", loop)
    assert all(finding.right for finding in check_kernels(names=["wkv6"], shapes=[SHAPE], masks=["none"]))
    assert set(seen) == {"highest"}


@pytest.mark.cpu
@pytest.mark.on("torch")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path, monkeypatch):
    """Compiled without optimisation and for the plainest instruction set."""
    monkeypatch.setattr(library, "SOURCES", quick.changed_sources(tmp_path / "src", *FAULTS[fault]))
    monkeypatch.setattr(library, "LEVELS", {})
    monkeypatch.setattr(library, "OPTIONS", (*library.OPTIONS, "-O0"))
    monkeypatch.setattr(library, "_ffi_headers", lambda: None)  # XLA's take longer than all else
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wrong = library.Library(library.build())
    monkeypatch.setitem(library._found, "here", wrong)
    names = ["wkv4"] if FAULTS[fault][0] == "wkv4.cc" else ["wkv6", "wkv7"]
    findings = list(check_kernels(levels=["plain"], names=names, shapes=[SHAPE], masks=["both"]))
    assert [finding for finding in findings if not finding.right]


LOOPS = {"wkv4": wkv4_loop, "wkv6": wkv6_loop, "wkv7": wkv7_loop}


def both_ways(name, xs, state):
    """y and last state of the kernel and of the loop, as NumPy."""
    forms = native(name, xs, state), LOOPS[name](*map(ops.convert_to_tensor, xs), ops.convert_to_tensor(state))
    return [[ops.convert_to_numpy(x) for x in form] for form in forms]


@pytest.mark.parametrize("decay", [-1e-6, -60.0, -np.inf, 0.0])
@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_extreme_decays(name, decay, rng):
    xs, state, _ = inputs(rng, name, (1, 9, 1, 8))
    xs[1][:] = decay
    for got, want in zip(*both_ways(name, xs, state), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
def test_what_is_no_number_passes_as_in_the_loop(name, value, rng):
    """A value of token 3 of head 1: what came before, and the other head, stay numbers."""
    xs, state, _ = inputs(rng, name, (1, 9, 2, 16))
    values = xs[1] if name == "wkv4" else xs[3]
    values[0, 3, ...] = np.where(np.arange(values[0, 3].size).reshape(values[0, 3].shape) < 16, values[0, 3], value)
    for got, want in zip(*both_ways(name, xs, state), strict=True):
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
@pytest.mark.parametrize("B", [0, 2])
def test_nothing_to_read(name, B, rng):
    """No row, and no token: what comes out has the shapes of what came in."""
    xs, state, _ = inputs(rng, name, (B, 3 if B == 0 else 1, 2, 8))
    y, last = native(name, xs, state)
    assert tuple(y.shape) == xs[0].shape and tuple(last.shape) == state.shape
