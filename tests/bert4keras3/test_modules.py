"""The modules of `bert4keras_rwkv.bert4keras3` hold what programs for RWKV take from them."""

import inspect

import keras
import numpy as np
import pytest

from bert4keras_rwkv import bert4keras3
from bert4keras_rwkv.bert4keras3 import backend, layers, models
from tests.models.small import SIZES, VERSIONS

RWKV6 = {**SIZES, **VERSIONS["6"], "model": "rwkv6"}


def test_arguments_in_their_order():
    parameters = inspect.signature(models.build_transformer_model).parameters
    assert list(parameters)[:6] == [
        "config_path",
        "checkpoint_path",
        "model",
        "application",
        "return_keras_model",
        "keras_weights_path",
    ]
    assert parameters["return_keras_model"].default is True and parameters["with_lm"].default is True


def test_star_imports():
    """Of `Models.RWKV`: the tools of the package and all layers of Keras."""
    names = {}
    exec("from bert4keras_rwkv.bert4keras3.Models.RWKV import *", names)
    assert names["Dense"] is keras.layers.Dense and names["ops"] is keras.ops and names["np"] is np
    assert {"keras", "K", "Loss", "Layer", "Model", "RWKV6", "Input", "Embedding", "json"} <= set(names)
    assert layers.Dropout is keras.layers.Dropout and backend.backlib == keras.config.backend()
    assert bert4keras3.ops is keras.ops and bert4keras3.models is models
    with pytest.raises(AttributeError, match=r"no 'transformers'. It has: Models, "):
        _ = bert4keras3.transformers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bert"}, "Only RWKV.*'rwkv6'.*Received: 'bert'"),
        ({"model": type("Mine", (), {})}, "Only RWKV"),
        ({"application": "unilm"}, "'encoder' or 'lm'.*'unilm'"),
        ({"dropout_rate": 0.1}, "no dropout.*dropout_rate=0.1"),
        ({"hidden_dropout_prob": 0.1}, "no dropout.*hidden_dropout_prob=0.1"),
        ({"embedding_size": 8}, "`embedding_size` must equal"),
        ({"layers": {"a": 1}}, "`layers` is not taken"),
        ({"additional_input_layers": [1]}, "`additional_input_layers` is not taken"),
        ({"with_lm": "softmaxs"}, "'softmax'.*'softmaxs'"),
        ({"hidden_sice": 3}, "hidden_sice"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.build_transformer_model(**{**RWKV6, **options})


def test_names_and_lora(monkeypatch):
    """`prefix` and `name` name what they did, so that two models fit into one; ENABLE_LORA=1 trains a LoRA only."""
    monkeypatch.setenv("ENABLE_LORA", "1")
    ignored = {"hidden_act": "gelu", "attention_dropout_rate": 0.3, "o_bias": True, "autoresize_weights": True}
    one = models.build_transformer_model(**RWKV6, prefix="a-", name="first", **ignored)
    other = models.build_transformer_model(**RWKV6, prefix="b-", with_lm=None)
    assert (one.name, one.inputs[0].name, other.output_shape) == ("first", "a-Input-Token", (None, None, 16))
    both = keras.Model(one.inputs + other.inputs, one.outputs + other.outputs)
    assert both.trainable_variables and all("lora" in v.name for v in both.trainable_variables)
