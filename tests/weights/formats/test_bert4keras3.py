"""The `.weights.h5` that bert4keras3 saved for an RWKV-6 is read under official names."""

import h5py
import numpy as np
import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights import WeightsError, open_weights
from tests.weights.formats.bert4keras3_files import saved

pytestmark = pytest.mark.backend_free


def test_every_weight_is_found_again(tmp_path, official):
    """1e-6: `ln_x` is divided and multiplied; all others are bit-equal."""
    saved(official, tmp_path / "model.weights.h5")
    with open_weights(tmp_path / "model.weights.h5") as tensors:
        assert tensors.metadata == {"format": "bert4keras3"}
        assert list(tensors) == list(official)
        assert tensors.shapes == {name: array.shape for name, array in official.items()}
        for name, array in official.items():
            np.testing.assert_allclose(
                tensors[name], array, rtol=1e-6 if "ln_x" in name else 0, atol=1e-6 * ("ln_x" in name)
            )


def test_an_optimizer_is_passed_over(tmp_path, official, same):
    """A model that was compiled saves its optimizer beside its layers."""
    path = tmp_path / "model.weights.h5"
    saved(official, path)
    with open_weights(path) as tensors:
        expected = dict(tensors)
    with h5py.File(path, "a") as file:
        file["optimizer/vars/0"] = np.zeros(3)
    with open_weights(path) as tensors:
        same(tensors, expected)


def test_what_is_missing_or_too_much_is_named(tmp_path, official):
    path = tmp_path / "model.weights.h5"
    saved(official, path)
    with h5py.File(path, "a") as file:
        file["layers/adapter/vars/0"] = np.zeros(3)
    with pytest.raises(WeightsError, match="no RWKV-6 of bert4keras3 has: adapter/vars/0"):
        open_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/adapter"], file["layers/time_mix_1/dense_k"]
    with pytest.raises(WeightsError, match="has no group 'layers/time_mix_1/dense_k/vars/0'"):
        open_weights(path)


@pytest.mark.oracle
def test_sizes_of_the_oracle(oracles):
    with open_weights(oracles / "bert4keras3/model.weights.h5") as tensors:
        assert RWKVConfig.from_shapes(tensors.shapes) == RWKVConfig.from_json(oracles / "bert4keras3/config.json")
