"""Native kernels as JAX functions: mapped, on several devices, exported."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import RECURRENCES, native

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
ROOT = Path(__file__).resolve().parents[3]


def run(code, *arguments, **variables):
    """What a program prints in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
def test_mapped(name, rng):
    """One kernel call for all, with gradients; what has no axis to map is shared."""
    import jax

    cases = [inputs(rng, name, (2, 18, 2, 8)) for _ in range(3)]
    shared = name != "wkv7"  # the last input, which is a weight
    present = rng.random((2, 18)) > 0.3

    def total(xs, state, last):
        y, new = native(name, (*xs, last), state, present)
        return (y * y).sum() + (new * new).sum()

    lasts = cases[0][0][-1] if shared else np.stack([xs[-1] for xs, _, _ in cases])
    xs = tuple(np.stack(x) for x in zip(*(xs[:-1] for xs, _, _ in cases), strict=True))
    states = np.stack([state for _, state, _ in cases])
    slope = jax.grad(total, (0, 1, 2))
    got = jax.vmap(slope, (0, 0, None if shared else 0))(xs, states, lasts)
    for i, (inner, state, _) in enumerate(cases):
        want = slope(inner[:-1], state, lasts if shared else inner[-1])
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x[i], y, atol=2e-5 * np.abs(y).max())


@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
@pytest.mark.parametrize("masked", [False, True])
def test_mapped_over_nothing(name, masked, rng):
    """What comes out has the shapes of what came in, with gradients and without."""
    import jax

    xs, state, _ = inputs(rng, name, (2, 18, 2, 8))
    present = np.ones((2, 18), bool) if masked else None
    none = [np.zeros((0, *x.shape), "float32") for x in (*xs, state)]

    def total(*given):
        return sum((x * x).sum() for x in native(name, given[:-1], given[-1], present))

    y, last = jax.vmap(lambda *given: native(name, given[:-1], given[-1], present))(*none)
    assert y.shape == none[0].shape and last.shape == none[-1].shape
    slopes = jax.vmap(jax.grad(total, tuple(range(len(none)))))(*none)
    assert [x.shape for x in slopes] == [x.shape for x in none]


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import RECURRENCES, native

name, B, T = sys.argv[1], 8, 20
rng = np.random.default_rng(0)
xs, state, start = inputs(rng, name, (B, T, 4, 16))
present, reset = rng.random((B, T)) > 0.2, rng.random((B, T)) > 0.8

def total(xs, state, start):
    y, last = native(name, xs, state, present, reset, start)
    return (y * y).sum() + (last * last).sum()

run = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
want = run(xs, state, start)
for shape in ((4, 1), (8, 1), (4, 2)):
    mesh = Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("batch", "heads"))

    def placed(x):
        axes = {"B": "batch", "H": "heads"}
        letters = "BTH" if x.shape[:2] == (B, T) else "B.H" if name == "wkv4" and x.ndim == 3 else "BH"
        letters = letters if x.shape[0] == B else ".H" if name == "wkv4" and x.ndim == 2 else "H"
        return jax.device_put(x, NamedSharding(mesh, P(*(axes.get(letter) for letter in letters))))

    placed_all = jax.tree.map(placed, (xs, state, start))
    compiled = run.lower(*placed_all).compile()
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text, text
    assert text.count('custom_call_target="bert4keras_rwkv') == 2
    for x, y in zip(jax.tree.leaves(compiled(*placed_all)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(y).max())
print("the same")
"""


@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
def test_batch_and_heads_stay_on_their_devices(name):
    """Four and eight processors: the same numbers, and nothing is gathered."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    assert run(SHARDED, name, XLA_FLAGS=flags, JAX_PLATFORMS="cpu") == "the same\n"


ODDLY_SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import native

name, rng = sys.argv[1], np.random.default_rng(0)
xs, state, _ = inputs(rng, name, (4, 12, 4, 8))
mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))

def total(xs, state):
    y, last = native(name, xs, state)
    return (y * y).sum() + (last * last).sum(), (y, last)

run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
want = run(xs, state)
axes = [None, "a", "b", ("a", "b")]
for case in range(12):
    def placed(x):
        spec = [axes[i] for i in rng.permutation(len(axes))]
        used, chosen = set(), []
        for size, axis in zip(x.shape, spec + [None] * x.ndim):
            names = set(axis if isinstance(axis, tuple) else [axis] if axis else [])
            fits = not names & used and size % 2 ** len(names) == 0
            chosen.append(axis if fits else None)
            used |= names if fits else set()
        return jax.device_put(x, NamedSharding(mesh, P(*chosen)))

    if case == 0:  # along time, the first of all
        given = tuple(jax.device_put(x, NamedSharding(mesh, P(None, "a") if x.ndim > 2 else P())) for x in xs)
        given = given, jax.device_put(state, NamedSharding(mesh, P()))
    elif case == 1:  # by batch, but for the state
        given = tuple(jax.device_put(x, NamedSharding(mesh, P("a") if x.ndim > 2 else P())) for x in xs)
        given = given, jax.device_put(state, NamedSharding(mesh, P()))
    else:
        given = jax.tree.map(placed, (xs, state))
    for x, y in zip(jax.tree.leaves(run(*given)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x), y, atol=2e-5 * np.abs(y).max())
print("the same")
"""


@pytest.mark.parametrize("name", ["wkv4", "wkv6", "wkv7"])
def test_however_the_tensors_lie(name):
    """Each along any of its dimensions, time and the state's own too."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    assert run(ODDLY_SHARDED, name, XLA_FLAGS=flags, JAX_PLATFORMS="cpu") == "the same\n"


def test_lowered_for_a_gpu(rng):
    """Here, where there is none: the program names the kernels by their sources and names alone."""
    import jax

    from bert4keras_rwkv.ops.kernels.on_jax import export_checks, target

    xs, state, _ = inputs(rng, "wkv6", (1, 5, 2, 8))

    def total(xs, state):
        y, last = native("wkv6", xs, state)
        return y.sum() + last.sum()

    allowed = export_checks()
    exported = jax.export.export(jax.jit(jax.grad(total)), platforms=["cuda"], disabled_checks=allowed)(xs, state)
    text = exported.mlir_module()
    assert text.count(f"@{target()}(") == 2 and 'kernel = "wkv6_gradient"' in text


EXPORT = """
import sys
import jax, numpy as np
from bert4keras_rwkv.ops.kernels.check import inputs
from bert4keras_rwkv.ops.kernels.native import RECURRENCES, native
from bert4keras_rwkv.ops.kernels.on_jax import export_checks

xs, state, _ = inputs(np.random.default_rng(0), "wkv6", (1, 5, 2, 8))
program = jax.jit(lambda xs, state: native("wkv6", xs, state))
allowed = export_checks()
open(sys.argv[1], "wb").write(jax.export.export(program, disabled_checks=allowed)(xs, state).serialize())
np.savez(sys.argv[2], *xs, state, *program(xs, state))
"""
IMPORT = """
import sys
import jax, numpy as np
if sys.argv[3] == "known":
    from bert4keras_rwkv.ops.kernels.on_jax import register
    register()
*xs, state, y, last = np.load(sys.argv[2]).values()
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
try:
    got = program.call(tuple(xs), state)
except jax.errors.JaxRuntimeError as error:
    print(str(error).splitlines()[0])
else:
    assert all((x == y).all() for x, y in zip(got, (y, last)))
    print("the same")
"""


def test_an_exported_program_runs_elsewhere(tmp_path):
    """Where the kernels are known; elsewhere one sentence names what is missing."""
    files = str(tmp_path / "program"), str(tmp_path / "arrays.npz")
    run(EXPORT, *files)
    assert run(IMPORT, *files, "known") == "the same\n"
    assert "No FFI handler registered for bert4keras_rwkv_" in run(IMPORT, *files, "unknown")


@pytest.mark.parametrize("name", sorted(RECURRENCES))
def test_the_gradient_has_none(name, rng):
    """One sentence; a gradient of which nothing is differentiated again is as before."""
    import jax

    xs, state, _ = inputs(rng, name, (1, 5, 2, 8))

    def steepness(xs):
        slopes = jax.grad(lambda xs: sum((x * x).sum() for x in native(name, xs, state)))(xs)
        return sum((x * x).sum() for x in slopes)

    assert np.isfinite(jax.jit(steepness)(xs))
    with pytest.raises(NotImplementedError, match="Build the model with kernel='ops'"):
        jax.grad(steepness)(xs)
