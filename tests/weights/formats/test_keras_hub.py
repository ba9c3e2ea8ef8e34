"""Keras Hub's RWKV-7 is read. The groups below are what its `RWKV7Backbone.save_weights` (0.32) was seen to write."""

import json

import h5py
import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.weights import WeightsError, open_weights
from tests.official import official_weights

pytestmark = pytest.mark.backend_free

# Data sets of a block, with what they hold; 2 heads of 8, ranks 3, 5, 4 and 2 of w, a, v and g.
MIXER = {
    "att/vars/0": "att.x_r", "att/vars/1": "att.x_w", "att/vars/2": "att.x_k", "att/vars/3": "att.x_v",
    "att/vars/4": "att.x_a", "att/vars/5": "att.x_g", "att/vars/6": "att.w0", "att/vars/7": "att.w1",
    "att/vars/8": "att.w2", "att/vars/9": "att.a0", "att/vars/10": "att.a1", "att/vars/11": "att.a2",
    "att/key/vars/0": "att.key.weight", "att/value/vars/0": "att.value.weight",
    "att/receptance/vars/0": "att.receptance.weight", "att/output_layer/vars/0": "att.output.weight",
    "att/ln_x/vars/0": "att.ln_x.weight", "att/ln_x/vars/1": "att.ln_x.bias", "ffn/vars/0": "ffn.x_k",
    "ffn/key/vars/0": "ffn.key.weight", "ffn/value/vars/0": "ffn.value.weight", "ln1/vars/0": "ln1.weight",
    "ln1/vars/1": "ln1.bias", "ln2/vars/0": "ln2.weight", "ln2/vars/1": "ln2.bias",
}  # fmt: skip
FIRST = MIXER | {
    "att/vars/12": "att.g1", "att/vars/13": "att.g2", "att/vars/14": "att.k_k", "att/vars/15": "att.k_a",
    "att/vars/16": "att.r_k", "ln0/vars/0": "ln0.weight", "ln0/vars/1": "ln0.bias",
}  # fmt: skip
LATER = MIXER | {
    "att/vars/12": "att.v0", "att/vars/13": "att.v1", "att/vars/14": "att.v2", "att/vars/15": "att.g1",
    "att/vars/16": "att.g2", "att/vars/17": "att.k_k", "att/vars/18": "att.k_a", "att/vars/19": "att.r_k",
}  # fmt: skip
GROUPS = {
    "layers/embedding/vars/0": "emb.weight", "layers/dense/vars/0": "head.weight",
    "layers/layer_normalization/vars/0": "ln_out.weight", "layers/layer_normalization/vars/1": "ln_out.bias",
    **{f"layers/rwkv7__block/{place}": f"blocks.0.{name}" for place, name in FIRST.items()},
    **{f"layers/rwkv7__block_1/{place}": f"blocks.1.{name}" for place, name in LATER.items()},
    **{f"layers/rwkv7__block_2/{place}": f"blocks.2.{name}" for place, name in LATER.items()},
}  # fmt: skip


def save(path, arrays, leave_out=(), more=()):
    """A file as Keras Hub saves it: kernels are [in, out], vectors have one axis."""
    with h5py.File(path, "w") as file:
        for place, name in GROUPS.items():
            array = arrays[name]
            dense = array.ndim == 2 and name.endswith(".weight") and name != "emb.weight"
            array = array.T if dense else array.reshape(-1) if array.ndim == 3 else array
            if name in leave_out:
                continue
            stored = array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array
            file[place] = stored
        for place in more:
            file[place] = np.zeros(2, np.float32)


@pytest.fixture
def arrays(rng):
    return official_weights("7", rng, layers=3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor(tmp_path, arrays, same, dtype):
    """All under official names, in released order, with official shapes; optimizer and seeds are not weights."""
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    save(tmp_path / "a.weights.h5", arrays, more=["optimizer/vars/0", "layers/dropout/seed_generator/vars/0"])
    with open_weights(tmp_path / "a.weights.h5") as tensors:
        assert tensors.metadata["format"] == "keras_hub"
        same(dict(tensors), arrays)
        assert tensors.shapes == {name: array.shape for name, array in arrays.items()}
        np.testing.assert_array_equal(
            tensors.entry("blocks.1.ffn.key.weight").rows(3, 9), arrays["blocks.1.ffn.key.weight"][3:9]
        )


def test_what_is_missing_or_too_much_is_named(tmp_path, arrays):
    save(tmp_path / "a.weights.h5", arrays, leave_out=["blocks.1.att.r_k"], more=["layers/adapter/vars/0"])
    with pytest.raises(WeightsError) as caught:
        open_weights(tmp_path / "a.weights.h5")
    assert str(caught.value).splitlines()[1:] == [
        "  nothing at 'layers/rwkv7__block_1/att/vars/19'",
        "  no rule for 'layers/adapter/vars/0'",
    ]


def test_what_is_no_data_set(tmp_path, arrays):
    """HDF5 files may hold types by themselves."""
    save(tmp_path / "a.weights.h5", arrays)
    with h5py.File(tmp_path / "a.weights.h5", "a") as file:
        file["layers/type"] = np.dtype("f4")
    with pytest.raises(WeightsError, match=r"'layers/type' in .* is neither a group nor a data set"):
        open_weights(tmp_path / "a.weights.h5")


def test_shards(tmp_path, arrays, same):
    """Large models are saved in several files and an index, as Keras writes them."""
    save(tmp_path / "all.weights.h5", arrays)
    places = {"model_0.weights.h5": [], "model_1.weights.h5": []}
    for place in GROUPS:
        places[f"model_{int('block_2' in place)}.weights.h5"].append(place)
    with h5py.File(tmp_path / "all.weights.h5") as whole:
        for name, part in places.items():
            with h5py.File(tmp_path / name, "w") as file:
                for place in part:
                    file[place] = whole[place][()]
    groups = {f"/{place.rpartition('/')[0]}": name for name, part in places.items() for place in part}
    (tmp_path / "model.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": groups}))
    with open_weights(tmp_path / "model.weights.json") as tensors:
        assert tensors.metadata["format"] == "keras_hub"
        same(dict(tensors), arrays)
