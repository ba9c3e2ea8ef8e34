"""Files that an earlier version of this package wrote are read as it read them.

`saved/0.1.0` holds them, of small models with random weights, and what each of them answers. They were written by
`python -m tests.models.test_saved_before FOLDER`; a later format gets a folder of its own beside it.
"""

import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.training.callbacks import TrainingCheckpoint
from tests.models.small import scatter, small_model

SAVED = Path(__file__).parent / "saved" / "0.1.0"
IDS = np.arange(1, 11, dtype="int32")[None]
VERSIONS = ("4", "5.2", "6", "7")
PADDED = np.concatenate([IDS, np.full((1, 2), -1, "int32")], 1)


def tuned(seed=0):
    """A model with a LoRA and a tuned initial state."""
    rwkv = small_model("6", num_hidden_layers=1)
    rwkv.enable_lora(2, alpha=4, targets=("key", "head"))
    rwkv.enable_state_tuning(time_shift_tuning=True)
    scatter(rwkv, seed)
    return rwkv


def untuned(version):
    """Other weights of the same shapes."""
    return small_model(version, seed=1, num_hidden_layers=1)


def trained(folder):
    """A training model at the last checkpoint of `folder`, or trained for a step, which writes one there."""
    rwkv = untuned("6")
    rwkv.enable_lora(2, targets=("key",))
    model = rwkv.training_model()
    model.compile("adam")
    model.fit(IDS, epochs=1, verbose=0, callbacks=[TrainingCheckpoint(folder)])
    return rwkv


def answer(rwkv):
    return ops.convert_to_numpy(rwkv.forward(IDS)[0])


def write(folder):
    """Every kind of file there is, and the answers of what was saved."""
    folder.mkdir(parents=True)
    rwkv = tuned()
    rwkv.model.save(folder / "tuned.keras")
    rwkv.model.save_weights(folder / "tuned.weights.h5")
    rwkv.save_adapter(folder / "adapter.safetensors")
    rwkv.tuned_state().save(folder / "state.safetensors")
    answers = {"tuned": answer(rwkv)}
    cache = small_model(num_hidden_layers=1, pad_token_id=-1, temperature=0.0).build_cache_model([12], None)
    cache.save(folder / "cache.keras")
    answers["cache"] = cache.predict([PADDED], verbose=0)
    for version in VERSIONS:
        rwkv = untuned(version)
        rwkv.save_to_preset(folder / version)
        answers[version] = answer(rwkv)
    answers["trained"] = answer(trained(folder / "training"))
    np.savez_compressed(folder / "answers.npz", **answers)


@pytest.fixture(scope="module")
def answers():
    return np.load(SAVED / "answers.npz")


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_preset(answers, version):
    close(answer(RWKV.from_preset(SAVED / version)), answers[version])


def test_a_keras_file(answers):
    model = keras.models.load_model(SAVED / "tuned.keras")
    close(model.predict(IDS, verbose=0), answers["tuned"])


def test_a_cache_model(answers):
    model = keras.models.load_model(SAVED / "cache.keras")
    np.testing.assert_array_equal(model.predict([PADDED], verbose=0), answers["cache"])


def test_weights(answers):
    rwkv = tuned(seed=2)
    rwkv.model.load_weights(SAVED / "tuned.weights.h5")
    close(answer(rwkv), answers["tuned"])


def test_an_adapter(answers):
    """The base that it was made for was frozen, and is that of the weights."""
    rwkv = tuned(seed=2)
    rwkv.model.load_weights(SAVED / "tuned.weights.h5")
    state = rwkv.tuned_state()
    for path in ("blocks/0/time_mix/key/lora_kernel_a", "blocks/0/time_mix/key/lora_kernel_b"):
        rwkv.backbone.variable_at(path).assign(np.ones(rwkv.backbone.variable_at(path).shape))
    rwkv.set_tuned_state(RWKVState(state.wkv * 2, state.shift * 2))
    rwkv.load_adapter(SAVED / "adapter.safetensors")
    close(answer(rwkv), answers["tuned"])


def test_a_state(answers):
    rwkv = tuned(seed=2)
    rwkv.model.load_weights(SAVED / "tuned.weights.h5")
    rwkv.set_tuned_state(RWKVState.zeros(rwkv.config, 1))
    rwkv.set_tuned_state(rwkv.load_state(SAVED / "state.safetensors"))
    close(answer(rwkv), answers["tuned"])


@pytest.mark.on("jax", "torch")
def test_a_training(answers, tmp_path):
    """It goes on from its checkpoint, which had all epochs: nothing is trained, and the weights are those."""
    shutil.copytree(SAVED / "training", tmp_path / "training")
    close(answer(trained(tmp_path / "training")), answers["trained"])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
