"""Random noise that depends on a seed, a position and a token id, and on nothing else.

The definition below is a promise: the same seed gives the same noise on every backend, in every batch, and in later
versions of this package. Bits are equal everywhere; the noise made of them is equal to the rounding of `log`.

    key       = (seed, 0x52574B56)                "RWKV" in ASCII
    counter   = (position, id >> 1)               position = how many tokens of this text were generated before
    word      = Threefry-2x32 with 20 rounds of (key, counter), the first of its two words for even ids, else the second
    u         = (word + 1/2) / 2^32               word read as unsigned, in float32, at most 1 - 2^-24
    noise     = -log(-log(1 - u))                 Gumbel(0, 1)

Threefry: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011). All arithmetic is int32 that wraps.
"""

import numpy as np

from bert4keras_rwkv.keras_loader import ops

KEY = 0x52574B56
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key, counter):
    """Threefry-2x32 with 20 rounds.

    key, counter: pairs of int32 tensors (at least one axis) that broadcast against each other. Returns a pair of int32
    tensors. Bit-equal to Random123 and to `jax.random`.
    """
    keys = (key[0], key[1], ops.bitwise_xor(ops.bitwise_xor(_int(key[0]), _int(key[1])), _int(_PARITY)))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            a = a + b
            b = ops.bitwise_xor(_rotate_left(b, bits), a)
        a = a + keys[(group + 1) % 3]
        b = b + (keys[(group + 2) % 3] + (group + 1))
    return a, b


def _rotate_left(x, bits):
    # The right shift of int32 copies the sign: keep only the bits that came from the left.
    low = ops.bitwise_and(ops.right_shift(x, _int(32 - bits)), _int((1 << bits) - 1))
    return ops.bitwise_or(ops.left_shift(x, _int(bits)), low)


def _int(x):
    """int32, said: Keras' bit operations take a Python int for a float once floatx is bfloat16."""
    return ops.convert_to_tensor(x, "int32")


def uniform(words):
    """int32 words -> float32 in (0, 1), close to 0 as fine as 2^-33: 23 bits would be too coarse for 65,536 ids."""
    high = ops.cast(ops.bitwise_and(ops.right_shift(words, _int(16)), _int(0xFFFF)), "float32")
    low = ops.cast(ops.bitwise_and(words, _int(0xFFFF)), "float32")
    fraction = high * np.float32(2**-16) + (low + np.float32(0.5)) * np.float32(2**-32)
    return ops.minimum(fraction, np.float32(1 - 2**-24))


def gumbel_runs(seeds, starts, size):
    """Gumbel noise of runs of neighbouring ids: two of them share one computation of words.

    seeds: (B, 2) int32, (seed, tokens generated before). starts: (B, M) or (1, M) int32, the
    first id of each run, even. size: length of a run, even.
    Returns (B, M, size) float32.
    """
    return _runs(seeds, starts, size, _gumbel_of)


def gumbel_all(seeds, vocabulary):
    """Gumbel noise of every id. seeds: (B, 2) int32. Returns (B, vocabulary) float32."""
    return _all(seeds, vocabulary, _gumbel_of)


def uniform_all(seeds, vocabulary):
    """The `u` of every id, of which its noise is made. seeds: (B, 2) int32. Returns (B, vocabulary) float32."""
    return _all(seeds, vocabulary, uniform)


def _all(seeds, vocabulary, make):
    start = ops.zeros((1, 1), "int32")
    return _runs(seeds, start, vocabulary + vocabulary % 2, make)[:, 0, :vocabulary]


def _runs(seeds, starts, size, make):
    pairs = ops.expand_dims(ops.right_shift(starts, _int(1)), -1) + ops.arange(size // 2, dtype="int32")
    seeds = ops.reshape(seeds, (-1, 2, 1, 1))
    words = threefry2x32((seeds[:, 0], KEY), (seeds[:, 1], pairs))
    return ops.reshape(ops.stack([make(word) for word in words], -1), (-1, starts.shape[1], size))


def _gumbel_of(words):
    return -ops.log(-ops.log1p(-uniform(words)))
