"""A copy is the model, what was tuned too, in whichever of Keras' and Python's ways it is made, or the way says no."""

import copy
import functools
import json
import pickle

import keras
import numpy as np
import pytest
from keras import ops

from tests.models.small import scatter, small_model

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method"),  # Keras says it of each norm
]

TUNED = ["plain", *(pytest.param(kind, marks=pytest.mark.on("torch")) for kind in ("lora", "state")), "both"]


@functools.cache
def original(kind, cache):
    """The model that is copied."""
    return tuned(kind, **({"pad_token_id": -1} if cache else {"packed": True}))


def tuned(kind, **options):
    """A model whose every weight is random, with a LoRA of some projections, a tuned state, both, none, or rounded."""
    rwkv = small_model(num_hidden_layers=1, mask_output=[0], temperature=0.0, **options)
    if kind in ("lora", "both", "int4 and lora"):
        rwkv.enable_lora(2, alpha=4, targets=("key", "mix_low_rank", "head"))
    if kind in ("state", "both"):
        rwkv.enable_state_tuning(time_shift_tuning=True)
    if kind == "both":
        rwkv.backbone.variable_at("ln_out/gamma").trainable = True
    scatter(rwkv)
    if kind.startswith("int"):
        rwkv.model.quantize(kind.partition(" ")[0])
    return rwkv


def by_file(model, path, layer):
    model.save(path / "a.keras")
    return keras.models.load_model(path / "a.keras").get_layer(layer)


def cloned(model):
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    return again.get_layer("backbone")


def of_same_build(rwkv, kind, path):
    rwkv.model.save_weights(path / "a.weights.h5")
    again = tuned(kind, packed=True)
    for variable in again.backbone.variables:
        variable.assign(np.zeros(variable.shape))
    again.model.load_weights(path / "a.weights.h5")
    return again.backbone


# A way of copying -> the backbone of the copy.
WAYS = {
    "RWKV.model as .keras": lambda r, kind, path: by_file(r.model, path, "backbone"),
    "a training model as .keras": lambda r, kind, path: by_file(r.training_model(), path, "token_loss").backbone,
    "a segment trainer as .keras": lambda r, kind, path: by_file(r.segment_trainer(1), path, "token_loss").backbone,
    "a cache model as .keras": lambda r, kind, path: (
        by_file(r.build_cache_model([4], None), path, "generate_loop").network
    ),
    "clone_model": lambda r, kind, path: cloned(r.model),
    "save_weights, load_weights": of_same_build,
    "deepcopy": lambda r, kind, path: copy.deepcopy(r).backbone,
    "deepcopy of RWKV.model": lambda r, kind, path: copy.deepcopy(r.model).get_layer("backbone"),
    "pickle": lambda r, kind, path: pickle.loads(pickle.dumps(r)).backbone,
}


@pytest.mark.on("torch")
@pytest.mark.parametrize("kind", ["int8", "int4 and lora"])
@pytest.mark.parametrize("way", ["RWKV.model as .keras", "save_weights, load_weights", "pickle"])
def test_a_copy_is_what_keras_rounded(way, kind, tmp_path):
    test_a_copy_is_the_model(way, kind, tmp_path)


@pytest.mark.parametrize("kind", TUNED)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_the_model(way, kind, tmp_path):
    """The same configuration, variables, values to the last bit, and which of them train."""
    rwkv = original(kind, "cache" in way)
    network = WAYS[way](rwkv, kind, tmp_path)
    assert network is not rwkv.backbone
    said, wanted = (json.dumps({**one.get_config(), "name": None}) for one in (network, rwkv.backbone))
    assert said == wanted  # as a file has them: Keras makes lists of tuples
    for got, want in zip(network.variables, rwkv.backbone.variables, strict=True):
        assert (got.name, got.dtype, got.trainable) == (want.name, want.dtype, want.trainable)
        assert ops.convert_to_numpy(got).tobytes() == ops.convert_to_numpy(want).tobytes()


@pytest.mark.parametrize("kind", ["plain", "lora", "state", "both"])
def test_weights_for_a_model_that_is_not_tuned(kind, tmp_path):
    """It takes the LoRA as part of its weights; a tuned state, for which it has no room, it refuses."""
    rwkv, plain = tuned(kind), small_model(num_hidden_layers=1, seed=1)
    rwkv.model.save_weights(tmp_path / "a.weights.h5")
    if kind in ("state", "both"):
        with pytest.raises(ValueError, match=r"enable_state_tuning\(time_shift_tuning=True\)"):
            plain.model.load_weights(tmp_path / "a.weights.h5")
        return
    plain.model.load_weights(tmp_path / "a.weights.h5")
    for name, array in rwkv.weights().items():
        np.testing.assert_array_equal(plain.weights()[name], array)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_for_a_model_that_is_tuned(tmp_path):
    """Weights of one that is not: its LoRA begins anew and trains, its state stays. Another rank, or other last inputs,
    are refused.
    """
    plain, rwkv = small_model(num_hidden_layers=1, seed=1), tuned("both")
    state = rwkv.tuned_state().wkv
    plain.model.save_weights(tmp_path / "a.weights.h5")
    rwkv.model.load_weights(tmp_path / "a.weights.h5")
    for name, array in plain.weights().items():
        np.testing.assert_array_equal(rwkv.weights()[name], array)
    np.testing.assert_array_equal(rwkv.tuned_state().wkv, state)
    assert ops.convert_to_numpy(rwkv.backbone.head.lora_kernel_a).any()
    rwkv.model.save_weights(tmp_path / "b.weights.h5")
    other = small_model(num_hidden_layers=1)
    other.enable_lora(3, targets=("key", "mix_low_rank", "head"))
    other.enable_state_tuning()
    with pytest.raises(ValueError, match=r"rank 3, that in the file 2|time_shift_tuning=True"):
        other.model.load_weights(tmp_path / "b.weights.h5")


def test_a_copy_answers_alike(tmp_path):
    """A cache model from its file writes what the first one writes; a copy of a model in use goes on with the same
    tokenizer and sampling, in weights of its own.
    """
    rwkv = tuned("both")
    ids = np.array([[3, 1, 4, 0, 0, 0]], "int32")
    model = rwkv.build_cache_model([6], end_token=5, output_state=True)
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    for got, want in zip(again([ids]), model([ids]), strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(got), ops.convert_to_numpy(want))
    written = rwkv.generate([3, 1, 4], 6)
    other = pickle.loads(pickle.dumps(rwkv))
    assert other.sampling == rwkv.sampling and other.generate([3, 1, 4], 6) == written
    assert other.model.get_layer("backbone") is other.backbone
    scatter(other, 1)
    assert rwkv.generate([3, 1, 4], 6) == written != other.generate([3, 1, 4], 6)
