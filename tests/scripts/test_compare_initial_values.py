"""The comparison of initial values compares what it says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.training.plan import TrainingPlan
from tests.models.small import small_model

pytestmark = pytest.mark.backend_free

FILE = Path(__file__).resolve().parents[2] / "scripts/compare_initial_values.py"
SPEC = importlib.util.spec_from_file_location(FILE.stem, FILE)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_keras_values_are_those_of_its_layers():
    """Norms 1 and 0, the embedding within 0.05, every matrix within Glorot's bound, and the same in every run."""
    models = [small_model("6", seed=seed) for seed in (0, 1)]
    for rwkv in models:
        script.give_keras_values(rwkv)
    ours, again = ([np.array(ops.convert_to_numpy(v)) for v in rwkv.backbone.variables] for rwkv in models)
    for variable, value, other in zip(models[0].backbone.variables, ours, again, strict=True):
        np.testing.assert_array_equal(value, other)
        if variable.name == "gamma":
            assert (value == 1).all()
        elif variable.name in ("beta", "bias"):
            assert not value.any()
        elif variable.name == "embeddings":
            assert 0.04 < np.abs(value).max() <= 0.05
        elif variable.name == "kernel" and value.ndim == 2:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.6 * bound < np.abs(value).max() <= bound


def test_both_optimizers_have_the_same_rate_decay_and_clipping():
    rwkv, plan = small_model("6"), TrainingPlan(steps=20, batch_size=1, length=8, learning_rate=1e-3, weight_decay=0.1)
    ours, keras_own = (script.optimizer_of(rwkv, plan, authors).get_config() for authors in (True, False))
    for name in ("weight_decay", "global_clipnorm"):
        assert ours[name] == keras_own[name]
    assert ours["learning_rate"]["config"] == keras_own["learning_rate"]["config"]
    assert keras_own["beta_2"] == 0.999 and "rates" not in keras_own
