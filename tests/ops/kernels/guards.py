"""Kernels run on NumPy arrays amid others that they must leave alone."""

import numpy as np

from bert4keras_rwkv.ops.kernels.library import DTYPES
from bert4keras_rwkv.ops.kernels.native import CHUNK, RECURRENCES

GUARD = 64  # numbers before and after each result


def sizes(T, N):
    return {"B": 2, "T": T, "H": 3, "N": N, "D": 3 * N, "C": -(-T // CHUNK), "3": 3}


def arrays(rng, letters, of):
    return [rng.standard_normal([of[x] for x in shape]).astype("float32") for shape in letters]


def described(arrays):
    return [(x.ctypes.data, DTYPES[str(x.dtype)], x.shape) for x in arrays]


def guarded(shape, dtype="float32"):
    """An array full of NaN amid more of them; returns the whole and the array."""
    whole = np.full(int(np.prod(shape)) + 2 * GUARD, np.nan, dtype)
    return whole, whole[GUARD : len(whole) - GUARD].reshape(shape)


def read(whole, inside):
    """What a kernel wrote, as float32; it wrote nothing beside."""
    assert np.isnan(np.concatenate([whole[:GUARD], whole[-GUARD:]]).astype("float32")).all()
    return inside.astype("float32")


def check(run, name, T, N, rng, keep=True, dtypes=()):
    """A kernel writes all of its results and nothing else. run(kernel, arguments, results). Returns the results.

    keep: also what the gradient needs, and that itself. dtypes: of the inputs.
    """
    recurrence, of = RECURRENCES[name], sizes(T, N)
    letters = (*recurrence.inputs, recurrence.state, recurrence.state)
    inputs = [-abs(x) if i == 1 else x for i, x in enumerate(arrays(rng, letters, of))]
    inputs = [x.astype(dtype) for x, dtype in zip(inputs, (*dtypes, *["float32"] * 8), strict=False)]
    inputs.append((rng.random((2, T)) > 0.7).astype("uint8") * rng.integers(1, 3, (2, T), dtype="uint8"))
    before = [x.copy() for x in inputs]
    made, slopes = [guarded(shape) for shape in recurrence.results(of, keep)], []
    run(name, described(inputs), described([x for _, x in made]))
    if keep:
        more = [*inputs, *(x for _, x in made[2:]), *arrays(rng, (recurrence.y, recurrence.state), of)]
        slopes = [guarded(x.shape, x.dtype) for x in inputs[:-1]]
        run(f"{name}_gradient", described(more), described([x for _, x in slopes]))
    for whole, inside in (*made, *slopes):
        assert np.isfinite(read(whole, inside)).all()
    for x, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, was)
    return [inside for _, inside in (*made, *slopes)]
