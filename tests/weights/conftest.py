"""A tiny RWKV-6 as the tests of this part need it: arrays under official names."""

import numpy as np
import pytest

from tests.official import official_weights


@pytest.fixture
def official(rng):
    """Official name -> float32 array of an RWKV-6: 2 layers, 2 heads of 4, 16 ids, ranks 3 and 5, in released order."""
    return official_weights("6", rng, head_size=4, ids=16)


@pytest.fixture
def same():
    """A check that two mappings hold the same names, in the same order, with equal arrays of equal dtype."""

    def check(found, expected):
        assert list(found) == list(expected)
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name])

    return check
