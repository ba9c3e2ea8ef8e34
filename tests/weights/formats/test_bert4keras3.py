"""The `.weights.h5` that bert4keras3 saved for an RWKV-6 is read under official names."""

import h5py
import numpy as np
import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights import WeightsError, open_weights

pytestmark = pytest.mark.backend_free


def saved(official, path):
    """A file in bert4keras3's layout with the weights `official`, whose `ln_x` is spread over its two affine maps."""
    with h5py.File(path, "w") as file:

        def put(group, *arrays):
            for number, array in enumerate(arrays):
                file[f"layers/{group}/vars/{number}"] = array

        def norm(name, number):
            group = f"layer_normalization_{number}" if number else "layer_normalization"
            put(group, official[f"{name}.weight"], official[f"{name}.bias"])

        put("embedding", official["emb.weight"])
        put("dense", official["head.weight"].T)
        norm("blocks.0.ln0", 0)
        norm("ln_out", 5)
        for i in range(2):
            norm(f"blocks.{i}.ln1", 2 * i + 1)
            norm(f"blocks.{i}.ln2", 2 * i + 2)
            suffix = f"_{i}" if i else ""
            att = {name.removeprefix(f"blocks.{i}.att."): array for name, array in official.items()}
            time = f"time_mix{suffix}"
            put(time, att["time_maa_x"].ravel(), att["time_faaaa"])
            for j, letter in enumerate("wkvrg"):
                put(f"{time}/dense_x{letter}/dense_a", np.split(att["time_maa_w1"], 5, axis=1)[j])
                put(f"{time}/dense_x{letter}/dense_b", att["time_maa_w2"][j], att[f"time_maa_{letter}"].ravel())
            put(f"{time}/dense_w/dense_a", att["time_decay_w1"])
            put(f"{time}/dense_w/dense_b", att["time_decay_w2"], att["time_decay"].ravel())
            for letter, name in zip("rkvog", ("receptance", "key", "value", "output", "gate"), strict=True):
                put(f"{time}/dense_{letter}", att[f"{name}.weight"].T)
            inner_scale, inner_offset = np.float32([1, 2, 3, 4]), np.float32([4, 3, 2, 1])
            scale = att["ln_x.weight"].reshape(2, 4) / inner_scale
            offset = att["ln_x.bias"].reshape(2, 4) - inner_offset * scale
            put(f"{time}/group_norm/group_ln", inner_scale, inner_offset)
            put(f"{time}/group_norm", scale, offset)
            channel = f"channel_mix{suffix}"
            ffn = {name.removeprefix(f"blocks.{i}.ffn."): array for name, array in official.items()}
            put(channel, ffn["time_maa_k"].ravel(), ffn["time_maa_r"].ravel())
            for name in ("key", "receptance", "value"):
                put(f"{channel}/dense_{name}", ffn[f"{name}.weight"].T)


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
