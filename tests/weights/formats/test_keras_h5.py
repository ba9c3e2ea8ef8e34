"""Our `.weights.h5` is what Keras writes and reads for `RWKV.model`, whichever side wrote it."""

import json

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights import WeightsError, open_weights, write_keras_h5
from bert4keras_rwkv.weights.formats.keras_h5 import h5_path, open_keras_h5, write_preset
from bert4keras_rwkv.weights.tensors import as_tensors


@pytest.fixture
def config(official):
    """The config of the tiny weights."""
    return RWKVConfig.from_shapes({name: array.shape for name, array in official.items()})


def values(model):
    """Path -> array of a Keras model's variables."""
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.variables}


def data_sets(path):
    """Path -> (shape, dtype) of everything in an HDF5 file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: (item.shape, str(item.dtype))} if hasattr(item, "shape") else {})
        )
    return found


def test_keras_reads_what_we_write(tmp_path, official, config):
    """The same variables as from the official names, bit for bit, and the same groups as Keras itself makes."""
    path, again = str(tmp_path / "a.weights.h5"), str(tmp_path / "b.weights.h5")
    write_keras_h5(path, official, config)
    model = build_transformer_model(**config.to_dict(), return_keras_model=True)
    model.load_weights(path)
    model.save_weights(again)
    assert data_sets(path) == data_sets(again)
    kernel = next(value for name, value in values(model).items() if name.endswith("head/kernel"))
    np.testing.assert_array_equal(kernel, official["head.weight"].T)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_we_read_what_keras_writes(tmp_path, official, config, same, dtype):
    """bfloat16 is stored as two opaque bytes and comes back as it was."""
    path = str(tmp_path / "a.weights.h5")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    expected = {name: array.astype(kind) for name, array in official.items()}
    write_keras_h5(path, official, config, dtype=dtype)
    with open_keras_h5(path, config) as tensors:
        same(tensors, expected)
    model = build_transformer_model(**config.to_dict(), return_keras_model=True, dtype=dtype)
    model.load_weights(path)
    model.save_weights(path)
    with open_weights(path, config) as tensors:
        same(tensors, expected)


def test_an_optimizer_is_passed_over(tmp_path, official, config, same):
    """A model that was compiled saves its optimizer beside its layers."""
    path = str(tmp_path / "a.weights.h5")
    write_keras_h5(path, official, config)
    with h5py.File(path, "a") as file:
        file["optimizer/vars/0"] = np.zeros(3)
    with open_keras_h5(path, config) as tensors:
        same(tensors, official)


def test_a_config_beside_it_or_given(tmp_path, official, config):
    path = tmp_path / "a.weights.h5"
    write_keras_h5(path, official, config)
    with pytest.raises(WeightsError, match=r"Put its 'config\.json' beside it"):
        open_weights(path)


def test_another_depth_is_named(tmp_path, official, config):
    path = tmp_path / "a.weights.h5"
    write_keras_h5(path, official, config)
    other = RWKVConfig.from_dict({**config.to_dict(), "num_hidden_layers": 1})
    with pytest.raises(WeightsError, match="no rule for 'layers/backbone/blocks/block_1/"):
        open_weights(path, other)


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, official, config):
    del official["emb.weight"]
    official["extra"] = np.zeros(3)
    with pytest.raises(
        WeightsError, match=r"2 weights do not fit:\n  no rule for 'extra'.*\n  nothing in the file fills 'embed"
    ):
        write_keras_h5(tmp_path / "a.weights.h5", as_tensors(official), config)
    assert list(tmp_path.iterdir()) == []


def test_every_rule_has_a_place_of_its_own(config):
    places = [h5_path(rule.path) for rule in filled(config.rules())]
    assert len(set(places)) == len(places)
    assert h5_path("blocks/0/ln1/gamma") == "layers/backbone/blocks/block/ln1/vars/0"
    assert h5_path("blocks/2/time_mix/key/kernel") == "layers/backbone/blocks/block_2/time_mix/key/vars/0"
    assert h5_path("blocks/2/time_mix/decay") == "layers/backbone/blocks/block_2/time_mix/vars/decay"


def sharded(tmp_path, config):
    """A model whose weights Keras has saved in several files, and their index."""
    index = tmp_path / "model.weights.json"
    model = build_transformer_model(**config.to_dict(), return_keras_model=True)
    model.save_weights(str(index), max_shard_size=2e-6)  # GB: about 2 kB
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return model, index


def test_we_read_what_keras_writes_in_shards(tmp_path, config):
    """The folder, or the index, is the same model as one file."""
    model, index = sharded(tmp_path, config)
    assert len(list(tmp_path.glob("model_*.weights.h5"))) > 2
    whole = tmp_path / "whole" / "a.weights.h5"
    whole.parent.mkdir()
    model.save_weights(whole)
    with open_weights(whole, config) as expected:
        for path in (tmp_path, index):
            with open_weights(path) as tensors:
                assert list(tensors) == list(expected)
                for name in expected:
                    np.testing.assert_array_equal(tensors[name], expected[name])


@pytest.mark.parametrize("damage", ["missing", "moved", "double"])
def test_shards_that_are_no_whole_model(tmp_path, config, damage):
    _, index = sharded(tmp_path, config)
    first, second = sorted(tmp_path.glob("model_*.weights.h5"))[:2]
    if damage == "missing":
        first.unlink()
    elif damage == "double":
        with h5py.File(first) as source, h5py.File(second, "a") as file:
            source.copy("layers", file, "more")
    else:
        said = json.loads(index.read_text())
        group = next(iter(said["weight_map"]))
        del said["weight_map"][group]
        index.write_text(json.dumps(said))
    said = {"missing": f"the shard '{first.name}' is missing", "moved": "by the index it should not", "double": "more/"}
    with pytest.raises(WeightsError, match=said[damage]):
        open_weights(tmp_path)


def test_the_config_of_another_program_is_not_replaced(tmp_path, official, config):
    (tmp_path / "config.json").write_text('{"name": "theirs"}')
    with pytest.raises(ValueError, match="of something else"):
        write_preset(tmp_path, as_tensors(official), config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"name": "theirs"}'
