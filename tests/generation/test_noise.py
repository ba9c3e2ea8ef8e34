"""The noise is a promise: bit-equal words, the same noise for an id however it is asked for, Gumbel-distributed."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from bert4keras_rwkv.generation import noise
from bert4keras_rwkv.ops.compile import compiled
from tests.generation import toy


def int32(*numbers):
    return np.array(numbers, "uint32").astype("int32")


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, words):
    """The known answers that come with Random123, 20 rounds; compiled as well as run directly."""
    args = [ops.convert_to_tensor(int32(number)) for number in (*key, *counter)]

    def run(k0, k1, c0, c1):
        return noise.threefry2x32((k0, k1), (c0, c1))

    for function in (run, compiled(run)):
        got = [ops.convert_to_numpy(word).astype("uint32") for word in function(*args)]
        assert tuple(int(word[0]) for word in got) == words


@pytest.mark.backend_free
def test_plain_threefry_of_the_tests():
    """The truth the other tests compare with meets the same known answer."""
    assert toy.threefry((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == (0xC4923A9C, 0x483DF7A0)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="compares with jax.random")
def test_equal_to_jax(rng):
    from jax.extend.random import threefry_2x32

    key, counts = rng.integers(0, 2**32, 2, "uint32"), rng.integers(0, 2**32, 64, "uint32")
    want = np.asarray(threefry_2x32(key, counts))
    key, a, b = key.astype("int32"), counts[:32].astype("int32"), counts[32:].astype("int32")
    got = noise.threefry2x32((key[:1], key[1:]), (a, b))
    np.testing.assert_array_equal(np.concatenate(got).astype("uint32"), want)


def test_noise_is_as_promised():
    """1e-5: float32 against float64; `log` rounds differently on each backend."""
    seeds = int32(7, 0, 0xFFFFFFFF, 5).reshape(2, 2)
    want = [toy.noise(7, 0, 33), toy.noise(0xFFFFFFFF, 5, 33)]
    for got in (noise.gumbel_all(ops.convert_to_tensor(seeds), 33), compiled(lambda s: noise.gumbel_all(s, 33))(seeds)):
        np.testing.assert_allclose(ops.convert_to_numpy(got), want, rtol=1e-5, atol=1e-5)


def test_noise_of_few_ids_is_that_of_all():
    """Runs of ids have the noise they have in the full draw."""
    seeds = ops.convert_to_tensor(int32(1, 2, 3, 4, 5, 6).reshape(3, 2))
    whole = ops.convert_to_numpy(noise.gumbel_all(seeds, 200))
    starts = np.array([[0, 64], [10, 192], [2, 4]], "int32")
    runs = ops.convert_to_numpy(noise.gumbel_runs(seeds, ops.convert_to_tensor(starts), 8))
    want = [[whole[b, s : s + 8] for s in row] for b, row in enumerate(starts)]
    np.testing.assert_allclose(runs, want, rtol=1e-6)


def test_uniforms_stay_inside_and_fine():
    """Never 0 or 1, and as fine as 2^-33 at the end that makes the largest noise."""
    got = ops.convert_to_numpy(noise.uniform(ops.convert_to_tensor(int32(0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))))
    np.testing.assert_allclose(got, [2**-33, 3 * 2**-33, 0.5, 0.5, 1], rtol=1e-6)
    assert (got > 0).all() and (got < 1).all()


def test_noise_is_gumbel_and_new_at_each_step():
    """Kolmogorov-Smirnov on 60,000 numbers; neighbouring seeds and positions do not correlate."""
    seeds = int32(*range(6), *[3] * 6, *[4] * 6).reshape(3, 6)[[0, 1]].T
    got = ops.convert_to_numpy(noise.gumbel_all(ops.convert_to_tensor(np.ascontiguousarray(seeds)), 10_000))
    assert stats.kstest(got.ravel(), "gumbel_r").pvalue > 1e-3
    later = noise.gumbel_all(ops.convert_to_tensor(np.ascontiguousarray(seeds + np.array([0, 1], "int32"))), 10_000)
    correlation = np.corrcoef(np.concatenate([got, ops.convert_to_numpy(later)])) - np.eye(12)
    assert np.abs(correlation).max() < 0.05
