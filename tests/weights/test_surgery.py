"""Vocabulary surgery on lazy tensors: NumPy's own indexing and averages, whatever a format can read in part."""

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights import open_weights, write_pth
from bert4keras_rwkv.weights.formats.keras_h5 import write_keras_h5
from bert4keras_rwkv.weights.surgery import surgery
from bert4keras_rwkv.weights.tensors import WeightsError, as_tensors
from tests.official import official_weights

pytestmark = pytest.mark.backend_free

IDS = 48
KEEP = [0, 3, 4, 5, 17, 16, 47, 2]
COMPOUNDS = [[1, 2, 3], ([4, 47], [3, -1]), (np.array([5, 5, 6]), (0.5, 0.25, 0.25))]


@pytest.fixture(scope="module")
def weights():
    return official_weights("6", np.random.default_rng(4), ids=IDS)


def expected(table):
    """With NumPy's own words."""
    table = table.astype("float64")
    new = [table[1:4].mean(0), np.average(table[[4, 47]], 0, [3, -1]), 0.75 * table[5] + 0.25 * table[6]]
    return np.concatenate([table[KEEP], new])


@pytest.mark.parametrize("kind", ["memory", "pth", "h5"])
def test_rows_are_kept_and_averaged(weights, kind, tmp_path):
    """From tensors that are read whole, by rows and by columns. 1e-6: averages are rounded to float32."""
    tensors = as_tensors(weights)
    if kind == "pth":
        write_pth(tmp_path / "w.pth", weights)
        tensors = open_weights(tmp_path / "w.pth")
    if kind == "h5":
        config = RWKVConfig.from_shapes(tensors.shapes)
        write_keras_h5(tmp_path / "w.weights.h5", weights, config)
        tensors = open_weights(tmp_path / "w.weights.h5", config)
    with tensors:
        cut = surgery(KEEP, COMPOUNDS, IDS).applied(tensors, IDS)
        for name in ("emb.weight", "head.weight"):
            want = expected(weights[name])
            assert cut.shapes[name] == cut[name].shape == (11, 16)
            np.testing.assert_allclose(cut[name], want, rtol=0, atol=1e-6)
            entry, whole = cut.entry(name), np.zeros((11, 16), "float32")
            if entry.rows is not None:
                for start, stop in [(0, 3), (3, 8), (7, 9), (9, 10), (10, 11)]:
                    whole[start:stop] = entry.rows(start, stop)
                np.testing.assert_array_equal(whole, cut[name])
            if entry.columns is not None:
                np.testing.assert_array_equal(entry.columns(5, 9), cut[name][:, 5:9])
        assert list(cut) == list(tensors)
        np.testing.assert_array_equal(cut["blocks.0.att.key.weight"], weights["blocks.0.att.key.weight"])


@pytest.mark.parametrize(("compounds", "dtype"), [(None, "bfloat16"), ([[1, 2]], "float32")])
def test_averages_of_half_precision_are_not_rounded(weights, compounds, dtype):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    cut = surgery(KEEP, compounds, IDS).applied(as_tensors(half), IDS)
    assert cut["emb.weight"].dtype == cut.dtypes["emb.weight"] == np.dtype(dtype)
    if compounds:
        want = half["emb.weight"][1:3].astype("float64").mean(0).astype("float32")
        np.testing.assert_array_equal(cut["emb.weight"][-1], want)


def test_nothing_asked_for():
    assert surgery(None, None, 5) is surgery(None, [], 5) is None
    assert surgery(None, [[1]], 5).size == 6 and surgery([1, 2], None, 5).size == 2


@pytest.mark.parametrize(
    ("keep", "compounds", "message"),
    [
        ([], None, "`keep_tokens` has at least one id"),
        ([0, 1, 0], None, "each id once. Received: 0"),
        ([0, 48], None, "ids of the file, 0 to 47. Received: 48"),
        ([0, -1], None, "0 to 47. Received: -1"),
        ([0, 1.5], None, "is a list of ids"),
        ("abc", None, "is a list of ids"),
        (5, None, "is a list of ids"),
        (None, [[]], r"`compound_tokens\[0\]` has at least one id"),
        (None, [[1], [48]], r"`compound_tokens\[1\]` has ids of the file, 0 to 47. Received: 48"),
        (None, [3], r"`compound_tokens\[0\]` is a list of ids"),
        (None, [([1, 2], [1])], "finite weight for each of its 2 ids"),
        (None, [([1, 2], [1, float("nan")])], "finite weight"),
        (None, [([1, 2], ["a", "b"])], "finite weight"),
        (None, [([1, 2], [1, -1])], "a sum other than 0"),
    ],
)
def test_what_cannot_be(keep, compounds, message):
    with pytest.raises(ValueError, match=message):
        surgery(keep, compounds, IDS)


def test_a_file_of_another_size(weights):
    with pytest.raises(WeightsError, match=r"choose from 40 rows, as the config says. 'emb.weight' has .*\(48, 16\)"):
        surgery([1], None, 40).applied(as_tensors(weights), 40)
