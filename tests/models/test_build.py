"""What `build_transformer_model` accepts, and what it says about the rest."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import RWKV, build_transformer_model
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights import WeightsError, write_pth
from tests.models.small import SIZES, VERSIONS, arrays, assert_close, small_model, texts

pytestmark = pytest.mark.once

RWKV6 = {**SIZES, **VERSIONS["6"]}


def cache(rwkv):
    return rwkv.build_cache_model([2], None)


@pytest.fixture(scope="module")
def rwkv():
    return small_model()


@pytest.fixture(scope="module")
def ids():
    return texts(np.random.default_rng(2), 2, 20)


@pytest.fixture
def checkpoint(rwkv, tmp_path):
    path = tmp_path / "small.pth"
    write_pth(path, rwkv.weights())
    return path


def test_preset_round_trip(rwkv, ids, tmp_path):
    letters = RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)})
    model = small_model(vocab_size=257, tokenizer=letters)
    model.save_to_preset(tmp_path / "preset")
    assert sorted(p.name for p in (tmp_path / "preset").iterdir()) == ["config.json", "model.weights.h5", "vocab.txt"]
    again = RWKV.from_preset(tmp_path / "preset")
    assert_close(arrays(*again.forward(ids)), arrays(*model.forward(ids)), bar=0)
    assert again.tokenizer.encode("cat") == letters.encode("cat")
    model.model.save_weights(tmp_path / "w.weights.h5")
    again.model.load_weights(tmp_path / "w.weights.h5")


def test_a_preset_has_the_vocabulary_that_was_saved(tmp_path):
    """Whatever other vocabularies lie in its folder."""
    one, other = (
        RWKV_TOKENIZER.from_entries({1 + (b + shift) % 256: bytes([b]) for b in range(256)}) for shift in (0, 1)
    )
    (tmp_path / "preset").mkdir()
    other.save(tmp_path / "preset/rwkv_vocab_old.txt")
    small_model(vocab_size=257, tokenizer=one).save_to_preset(tmp_path / "preset")
    assert RWKV.from_preset(tmp_path / "preset").tokenizer.encode("cat") == one.encode("cat") != other.encode("cat")


def test_a_file_of_another_version_is_named(checkpoint):
    with pytest.raises(ValueError, match=r"`model` is 'rwkv7', but '.*small\.pth' holds an 'rwkv6'"):
        build_transformer_model(checkpoint_path=checkpoint, model="rwkv7")


def test_version_and_sizes_come_from_the_file(rwkv, ids, checkpoint):
    again = build_transformer_model(checkpoint_path=checkpoint)
    assert again.config == rwkv.config
    assert_close(arrays(*again.forward(ids)), arrays(*rwkv.forward(ids)), bar=0)


def test_the_way_of_bert4keras(rwkv, ids, tmp_path):
    config, weights = tmp_path / "config.json", tmp_path / "model.weights.h5"
    config.write_text(json.dumps(RWKV6))
    rwkv.model.save_weights(weights)
    model = build_transformer_model(
        config_path=config,
        keras_weights_path=weights,
        model="rwkv6",
        return_keras_model=True,
        sequence_length=20,
        with_lm="softmax",
        pad_token_id=None,
        penalty=1.1,
        penalty_window=128,
        max_penalty_range=[2, 5],
        temperature=0.9,
    )
    assert isinstance(model, keras.Model)
    assert model.input_shape == (None, 20)
    want = ops.softmax(rwkv.forward(ids)[0])
    np.testing.assert_allclose(model.predict(ids, verbose=0), ops.convert_to_numpy(want), atol=1e-5)


def test_with_lm_and_names():
    """True is 'softmax', as in bert4keras3; with a prefix two models fit into one."""
    one, other = small_model(with_lm=True, prefix="one_"), small_model(with_lm=0, prefix="other_", name="hidden")
    assert one.with_lm == "softmax" and one.model.layers[-1].name == "one_probabilities"
    assert other.model.output_shape[-1] == SIZES["hidden_size"] and other.model.name == "hidden"
    both = keras.Model(one.model.inputs + other.model.inputs, one.model.outputs + other.model.outputs)
    assert [x.name for x in both.inputs] == ["one_Input-Token", "other_Input-Token"]


def test_hidden_states(ids):
    hidden = small_model(with_lm=False, pad_token_id=None)
    logits = hidden.backbone.head(hidden.model.predict(ids, verbose=0))
    assert_close([ops.convert_to_numpy(logits)], [ops.convert_to_numpy(hidden.forward(ids)[0])])


@pytest.mark.on("jax", "torch")
@pytest.mark.parametrize(
    ("dtype", "bar"),
    [
        ("bfloat16", 0.08),
        pytest.param("float16", 0.01, marks=pytest.mark.on("torch")),
        ("mixed_bfloat16", 0.08),
    ],
)
def test_half_precision(rwkv, ids, dtype, bar):
    """`wkv` and logits stay float32. The bar is on the root mean square, relative to that of the logits."""
    half = small_model(dtype=dtype)
    logits, state = half.forward(ids)
    assert ops.dtype(logits) == ops.dtype(state.wkv) == "float32"
    assert ops.dtype(state.shift) == half.backbone.compute_dtype != "float32"
    want = ops.convert_to_numpy(rwkv.forward(ids)[0])
    assert np.sqrt(np.mean((ops.convert_to_numpy(logits) - want) ** 2)) < bar * np.sqrt(np.mean(want**2))
    assert len(half.generate([1, 2, 3], 8, stop_token_ids=None, sampling="greedy")) == 8


@pytest.mark.on("torch")
def test_floatx_as_people_set_it(ids):
    keras.config.set_floatx("bfloat16")
    try:
        model = small_model()
        assert model.backbone.compute_dtype == "bfloat16"
        assert model.model.predict(ids, verbose=0).dtype == "float32"
        assert len(model.generate([[1, 2, 3], [4]], 8, stop_token_ids=None, seed=1)[1]) == 8
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def test_half_precision_files_compute_in_float32_on_a_cpu(rwkv, tmp_path, caplog):
    path = tmp_path / "small.pth"
    write_pth(path, rwkv.weights(), dtype="bfloat16")
    model = build_transformer_model(checkpoint_path=path)
    assert model.backbone.compute_dtype == "float32"
    assert build_transformer_model(checkpoint_path=path, dtype="bfloat16").backbone.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "rwkv9"}, "'rwkv9' is not known.*'rwkv6'"),
        ({"with_lm": "softmaxs"}, "'linear'"),
        ({"kernel": "cuda"}, "'auto', 'ops'"),
        ({"penalty": 0}, "`penalty`"),
        ({"hidden_dim": 3}, "hidden_dim"),
        ({"hidden_size": 15}, "hidden_size"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build_transformer_model(**{**RWKV6, **options})


def test_every_misfit_in_one_message(rwkv, checkpoint, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**RWKV6, "intermediate_size": 32, "time_decay_size": 5}))
    with pytest.raises(ValueError, match=r"(?s)weights do not fit.*time_decay_w1.*ffn.key"):
        build_transformer_model(config_path=config, checkpoint_path=checkpoint)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.generate("hello"), "tokenizer"),
        (lambda r: r.generate([]), "at least one token"),
        (lambda r: r.generate([[1], []]), "prompt 1 has none"),
        (lambda r: r.generate([1, 40]), "0 to 39.*40"),
        (lambda r: r.generate([1, 2, 3], max_length=2), "3 tokens.*is 2"),
        (lambda r: r.generate([1.5]), "whole numbers"),
        (lambda r: r.generate([1], sampling="best"), "'greedy'"),
        (lambda r: r.forward([[1, -1]]), "0 to 39.*-1"),
        (lambda r: r.forward([1, 2]), r"\(B, T\)"),
        (lambda r: r.forward([[1]], present=[[True, False]]), "present"),
        (lambda r: r.forward([[1]], small_model(num_hidden_layers=1).forward([[1]])[1]), "wkv"),
        (lambda r: r.build_cache_model([8], 0, search_mode="beam"), "'greedy', 'topk', 'topp'"),
        (lambda r: r.build_cache_model([8], 0, search_mode="topp", k=1.5), "1.5"),
        (lambda r: r.build_cache_model([8], 0, search_mode="topk", k=1), "above 1"),
        (lambda r: small_model(penalty=1.2, penalty_window=5).build_cache_model([8], 0), "multiple"),
        (lambda r: small_model(pad_token_id=None).build_cache_model([8], 0), "-1"),
        *((lambda r, pad=pad: small_model(pad_token_id=pad), "`pad_token_id`") for pad in (1.5, "1", [0], 2**31)),
        *(
            (lambda r, ids=ids: cache(r).predict([np.array([ids])], verbose=0), "A token id is 0 to 39")
            for ids in ([5, 40], [5, -3], [2**40 + 5, 1], [1.5, 2], [np.nan, 1])
        ),
        (lambda r: next(r.stream([1], max_new_tokens=2**31 - 1)), "prompt and max_new_tokens"),
    ],
)
def test_bad_calls(rwkv, call, message):
    with pytest.raises(ValueError, match=message):
        call(rwkv)


def test_fit_lowers_the_loss(ids):
    model = small_model()
    model.model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.model.fit(ids[:, :-1], ids[:, 1:], epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_the_whole_model_in_one_keras_file(rwkv, ids, tmp_path):
    rwkv.model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(ids, verbose=0), rwkv.model.predict(ids, verbose=0))


@pytest.mark.on("torch")
def test_answers_have_the_form_of_the_prompt():
    letters = RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)})
    model = small_model(vocab_size=257, tokenizer=letters, mask_output=[0])
    assert isinstance(model.generate("cat", 8, seed=1), str)
    several = model.generate(["cat", "a dog"], 8, seed=1, strip_prompt=True)
    assert [type(x) for x in several] == [str, str]
    assert model.generate("cat", 8, seed=1) == "cat" + model.generate("cat", 8, seed=1, strip_prompt=True)
    assert [len(x) for x in model.generate([[5], [6, 7]], 8, stop_token_ids=None)] == [8, 8]
    assert model.generate([5, 6], 2) == [5, 6]


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's")
def test_export(rwkv, ids, tmp_path):
    import tensorflow as tf

    rwkv.model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    served = loaded.serve([tf.constant(ids)])
    np.testing.assert_allclose(served.numpy(), rwkv.model.predict(ids, verbose=0), atol=1e-5)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: build_transformer_model(checkpoint_path=""), WeightsError, "name of a file or folder"),
        (lambda: RWKV.from_preset(""), WeightsError, "name of a file or folder"),
        (lambda: small_model(tokenizer=5), TypeError, "`tokenizer` is one of"),
        (lambda: small_model(sequence_length=0), ValueError, "`sequence_length` is a number of tokens"),
        (lambda: small_model().generate([1], state=5), TypeError, "`state` is an RWKVState"),
        (lambda: small_model().forward([[1, 2], [3]]), ValueError, "Rows of token ids have one length"),
    ],
)
def test_what_is_none_of_its_kind_is_told(build, error, message, tmp_path, monkeypatch):
    """In one sentence, also in a folder that holds a model."""
    small_model().save_to_preset(tmp_path / "preset")
    monkeypatch.chdir(tmp_path / "preset")
    with pytest.raises(error, match=message):
        build()
