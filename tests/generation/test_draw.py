"""The fast draw gives exactly the tokens that the sorted filters and Gumbel noise define."""

from dataclasses import fields

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from bert4keras_rwkv.generation import noise
from bert4keras_rwkv.generation.draw import BLOCK, SMALLEST, draw, first_max
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.ops.compile import compiled
from tests.generation import definitions, toy

B = 4
LOGITS = {
    "random": lambda rng, v: rng.normal(size=(B, v)),
    "peaked": lambda rng, v: rng.normal(size=(B, v)) * 8,
    "flat": lambda rng, v: np.zeros((B, v)),
    "tied": lambda rng, v: rng.integers(-2, 3, (B, v)),
    "masked": lambda rng, v: np.where(rng.random((B, v)) < 0.9, -np.inf, rng.normal(size=(B, v))),
}
SAMPLINGS = [
    Sampling(),
    Sampling(top_k=1),
    Sampling(top_k=40),
    Sampling(top_k=3000),
    Sampling(top_p=0.8501),
    Sampling(top_p=0.0201),
    Sampling(top_p=0.7031, top_k=40),
    Sampling(top_p=0.9903, top_k=7),
    Sampling(temperature=0.3, top_p=0.5003),
    Sampling(temperature=2.0, top_p=0.5003, top_k=300, temperature_after=True),
    Sampling(temperature=0.0, top_k=5, top_p=0.5003),
]


WITH_ROOM = 4 * BLOCK * 64 + 123  # ids, from which a few counted ones are drawn by their blocks


def shown(sampling):
    """The fields that are not at their default, as a test's name."""
    return ",".join(
        f"{f.name}={getattr(sampling, f.name)}" for f in fields(Sampling) if getattr(sampling, f.name) != f.default
    )


def drawer(sampling):
    plan = sampling.plan()
    return compiled(lambda logits, values, seeds: draw(logits, plan, values, seeds))


def truth(logits, sampling, added):
    """Rank by sorting, keep the first, add the noise, take the largest: one row, in NumPy."""
    if sampling.temperature == 0:
        return np.argmax(logits)
    cooled = logits.astype("float64") / sampling.temperature
    ranked = logits if sampling.temperature_after else cooled
    kept = np.sort(toy.allowed(ranked, sampling.top_k, sampling.top_p))
    return kept[np.argmax(cooled[kept] + added[kept])]


@pytest.mark.parametrize(
    ("sampling", "vocabulary"),
    [(sampling, SMALLEST + 123) for sampling in SAMPLINGS]
    + [pytest.param(sampling, 97, marks=pytest.mark.on("jax", "torch")) for sampling in SAMPLINGS[4::2]]
    + [(sampling, WITH_ROOM) for sampling in SAMPLINGS if sampling.plan().room in (8, 40)],
    ids=lambda x: shown(x) if isinstance(x, Sampling) else str(x),
)
def test_fast_draw_is_the_definition(sampling, vocabulary, rng):
    run, gumbel_all = drawer(sampling), compiled(lambda seeds: noise.gumbel_all(seeds, vocabulary))
    for name, make in LOGITS.items():
        logits = make(rng, vocabulary).astype("float32")
        for position in range(3):
            seeds = np.stack([np.arange(B), np.full(B, position)], 1).astype("int32")
            got = ops.convert_to_numpy(run(logits, sampling.values(B), seeds))
            added = ops.convert_to_numpy(gumbel_all(seeds))
            want = [truth(*row) for row in zip(logits, [sampling] * B, added, strict=True)]
            np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize("vocabulary", [97, WITH_ROOM])
def test_counts_are_numbers(vocabulary, rng):
    """Rows of different counts in one program, each as it is drawn alone; one keeps as many as there is room for."""
    counts = np.array([1, 7, 33, 40], "int32")
    logits = rng.normal(size=(4, vocabulary)).astype("float32")
    seeds = np.stack([np.arange(4), np.zeros(4)], 1).astype("int32")
    values = Sampling(top_k=40).values(4)
    got = ops.convert_to_numpy(drawer(Sampling(top_k=40))(logits, {**values, "top_k": counts}, seeds))
    added = ops.convert_to_numpy(noise.gumbel_all(seeds, vocabulary))
    assert got.tolist() == [
        truth(logits[row], Sampling(top_k=int(count)), added[row]) for row, count in enumerate(counts)
    ]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=40), Sampling(top_p=0.8501)], ids=shown)
def test_floatx_does_not_matter(sampling, rng):
    """With floatx bfloat16 Keras rounds what it makes of Python numbers; nothing here may be rounded so."""
    logits = rng.normal(size=(B, SMALLEST)).astype("float32")
    args = logits, sampling.values(B), np.arange(2 * B, dtype="int32").reshape(B, 2)
    before = ops.convert_to_numpy(drawer(sampling)(*args))
    floatx = keras.config.floatx()
    keras.config.set_floatx("bfloat16")
    after = ops.convert_to_numpy(drawer(sampling)(*args))
    keras.config.set_floatx(floatx)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("name", LOGITS)
def test_filters_are_their_definition(name, rng):
    """Against NumPy's stable sort in float64; the shares lie away from the sums of tied probabilities."""
    logits = LOGITS[name](rng, 97).astype("float32")
    keep = compiled(lambda x: (definitions.keep_top_k(x, 40), definitions.keep_top_p(x, 0.7031)))
    for got, limits in zip(keep(logits), [(40, 1.0), (None, 0.7031)], strict=True):
        for row, kept in zip(logits.astype("float64"), ops.convert_to_numpy(got), strict=True):
            want = set(toy.allowed(row, *limits)) & set(np.flatnonzero(row > -np.inf))
            assert set(np.flatnonzero(kept > -np.inf)) == want


def test_filters_keep_what_they_say():
    """0.4 0.3 0.2 0.1: the token that reaches p stays; ties go to the lower id; one always stays."""
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], "float32"))
    kept = lambda x: np.flatnonzero(ops.convert_to_numpy(x)[0] > -np.inf).tolist()  # noqa: E731
    assert kept(definitions.keep_top_p(ops.convert_to_tensor(logits), 0.69)) == [1, 3]
    assert kept(definitions.keep_top_p(ops.convert_to_tensor(logits), 0.71)) == [1, 2, 3]
    assert kept(definitions.keep_top_p(ops.convert_to_tensor(logits), 1e-6)) == [1]
    assert kept(definitions.keep_top_k(ops.convert_to_tensor(logits), 2)) == [1, 3]
    assert kept(definitions.keep_top_k(ops.convert_to_tensor(logits), 9)) == [0, 1, 2, 3]
    assert kept(definitions.keep_top_k(ops.zeros((1, 5)), 2)) == [0, 1]
    assert kept(definitions.keep_top_p(ops.zeros((1, 5)), 0.5)) == [0, 1, 2]


def test_frequencies_follow_the_distribution():
    """Chi-square over 20,000 draws: full, top-k, and top-p, where the kept share is renormalised by the draw."""
    p = np.array([0.35, 0.25, 0.2, 0.1, 0.06, 0.04])
    n = 20_000
    logits = np.tile(np.log(p), (n, 1)).astype("float32")
    seeds = np.stack([np.arange(n), np.zeros(n)], 1).astype("int32")
    for sampling, kept in ((Sampling(), 6), (Sampling(top_k=3), 3), (Sampling(top_p=0.75), 3)):
        ids = ops.convert_to_numpy(drawer(sampling)(logits, sampling.values(n), seeds))
        counts = np.bincount(ids, minlength=6)
        assert counts[kept:].sum() == 0
        assert stats.chisquare(counts[:kept], n * p[:kept] / p[:kept].sum()).pvalue > 1e-3


def test_temperature_changes_the_frequencies():
    """Probabilities to the power 1 / T, also where rows differ in T; 0 is the likeliest token."""
    p, n = np.array([0.5, 0.3, 0.2]), 10_000
    logits = np.tile(np.log(p), (2 * n, 1)).astype("float32")
    seeds = np.stack([np.arange(2 * n), np.zeros(2 * n)], 1).astype("int32")
    sampling = Sampling(temperature=0.5)
    values = sampling.values(2 * n)
    values["temperature"][n:] = 0
    ids = ops.convert_to_numpy(drawer(sampling)(logits, values, seeds))
    assert stats.chisquare(np.bincount(ids[:n]), n * p**2 / (p**2).sum()).pvalue > 1e-3
    assert (ids[n:] == 0).all()


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_k=3), Sampling(top_p=0.5003)], ids=shown
)
def test_nan_and_infinity_give_an_id(sampling, vocabulary=SMALLEST):
    """NaN is never drawn while another id is left; a row of nothing but NaN or -inf still ends, with some id."""
    logits = np.full((4, vocabulary), -np.inf, "float32")
    logits[0] = np.nan
    logits[1, 7], logits[1, 9] = 1.0, np.nan
    logits[3, 11] = -3e38
    seeds = np.zeros((4, 2), "int32")
    ids = ops.convert_to_numpy(drawer(sampling)(logits, sampling.values(4), seeds))
    assert ids[1] == 7 and ids[3] == 11 and ((ids >= 0) & (ids < vocabulary)).all()


def test_first_max_is_the_first():
    assert ops.convert_to_numpy(first_max(ops.convert_to_tensor([[1.0, 3, 3], [0, 0, 0]]))).tolist() == [1, 0]


@pytest.mark.once
@pytest.mark.parametrize("size", [50, SMALLEST + 10])
@pytest.mark.parametrize("after", [False, True])
def test_the_coldest_temperatures_are_greedy(size, after, rng):
    """However near to 0, and logits however large; 0 itself too, in a batch with warm rows."""
    temperature = np.array([1e-25, 1e-31, 1e-37, 1e-38, 1e-45, 0], "float32")
    logits = (rng.permuted(np.tile(np.arange(size), (len(temperature), 1)), axis=1) - size / 2).astype("float32")
    sampling = Sampling(temperature=0.5, top_p=0.99, top_k=30, temperature_after=after)
    values = {**sampling.values(len(temperature)), "temperature": temperature}
    seeds = np.zeros((len(temperature), 2), "int32")
    for scale in (1.0, 1e3):
        got = ops.convert_to_numpy(drawer(sampling)(logits * np.float32(scale), values, seeds))
        np.testing.assert_array_equal(got, logits.argmax(1))
