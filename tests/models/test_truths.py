"""The model against independent implementations: NumPy, the `rwkv` package, recorded answers."""

import json
from importlib import import_module

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import write_pth
from tests.models.small import VERSIONS, arrays, assert_close, lawful, small_model, texts


def numpy_state(state, layers):
    """The oracle's state as our two arrays."""
    wkv = np.stack([state[f"{i}.wkv"] for i in range(layers)])
    shift = np.stack([state[f"{i}.{part}.x"] for i in range(layers) for part in ("time", "channel")])
    return RWKVState(wkv[None], shift[None, :, None])


def check_numpy(version, rng, **options):
    """A model is its NumPy oracle: 1e-4 of float64, per tensor."""
    rwkv = small_model(version, **options)
    oracle = import_module(f"tests.models.numpy_{rwkv.config.model}")
    ids = texts(rng, 1, 50)
    logits, state = oracle.forward(rwkv.weights(), ids[0])
    want = arrays(logits[None], numpy_state(state, rwkv.config.num_hidden_layers))
    assert_close(arrays(*rwkv.forward(ids)), want)


@pytest.mark.parametrize("version", VERSIONS)
def test_numpy(version, rng):
    check_numpy(version, rng)


def test_one_head_and_ranks_of_one(rng):
    check_numpy("6", rng, num_attention_heads=1, attention_head_size=16, decomposer_size=1, time_decay_size=1)


@pytest.mark.live
def test_rwkv_package(tmp_path, rng, monkeypatch):
    """A file that we wrote, read by the `rwkv` package: the same logits and state."""
    pytest.importorskip("torch")
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    rwkv = small_model(hidden_size=64, num_attention_heads=1, attention_head_size=64, intermediate_size=224)
    path = tmp_path / "small.pth"
    write_pth(path, rwkv.weights())
    from rwkv.model import RWKV

    theirs = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    ids = texts(rng, 1, 30)
    logits, state = theirs.forward(ids[0].tolist(), None, full_output=True)
    wkv = np.stack([state[3 * i + 1].numpy() for i in range(2)])
    shift = np.stack([state[3 * i + j].numpy() for i in range(2) for j in (0, 2)])
    want = arrays(logits.numpy()[None], RWKVState(wkv[None], shift[None, :, None]))
    assert_close(arrays(*rwkv.forward(ids)), want)
    reread = build_transformer_model(checkpoint_path=path)
    assert_close(arrays(*reread.forward(ids)), want)


def reference(oracles, version, **options):
    """The model of a reference file, and its recorded answers."""
    folder = oracles / "reference"
    rwkv = build_transformer_model(checkpoint_path=folder / f"reference_{version}.pth", **options)
    return rwkv, np.load(folder / f"reference_{version}.npz", allow_pickle=True)


def recorded_state(answers, prefix, config):
    """A state as the `rwkv` package lists it, as ours. It keeps the matrices of RWKV-7, alone, as [value, key]."""
    each = 5 if config.model == "rwkv4" else 3
    layers = [
        [answers[f"{prefix}_{each * i + j}"].astype("float32") for j in range(each)]
        for i in range(config.num_hidden_layers)
    ]
    shift = np.stack([x for layer in layers for x in (layer[0], layer[-1])])
    wkv = np.stack([np.stack(layer[1:-1]) if each == 5 else layer[1] for layer in layers])
    if config.model == "rwkv7":
        wkv = np.swapaxes(wkv, -1, -2)
    return RWKVState(wkv[None], shift[None, :, None])


@pytest.mark.once
@pytest.mark.oracle
@pytest.mark.parametrize("version", [version for version in VERSIONS if " " not in version])
def test_reference_answers(oracles, version):
    rwkv, answers = reference(oracles, version)
    ids = answers["tokens"][None]
    end = recorded_state(answers, "state", rwkv.config)
    assert_close(arrays(*rwkv.forward(ids)), arrays(answers["logits"][None], end))
    begun = rwkv.forward(ids, recorded_state(answers, "init", rwkv.config))
    end = recorded_state(answers, "state_init", rwkv.config)
    assert_close(arrays(*begun), arrays(answers["logits_init"][None], end))


@pytest.mark.once
@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "bar"), [("bfloat16", 0.08), ("float16", 0.01)])
@pytest.mark.parametrize("version", lawful("6", "7"))
def test_reference_answers_in_half_precision(oracles, version, dtype, bar):
    """The bars that other implementations keep on these models, whose logits have a standard deviation of 1.5.

    Twice that at the worst token of RWKV-5.0 and 5.1, where the norm of a head of almost no variance magnifies the
    rounding before it: the `rwkv` package itself is 0.091 off in bfloat16. Elsewhere a quarter more, for the worst of
    50,000 logits is where a number happens to lie between two of float16: 0.0088 with pure ops and 0.0100 with native
    kernels of RWKV-7, which differ by 1e-7 and whose root mean squares, 0.00197, agree in three digits.
    """
    rwkv, answers = reference(oracles, version, dtype=dtype)
    logits = ops.convert_to_numpy(rwkv.forward(answers["tokens"][None])[0])[0]
    error = np.abs(logits - answers["logits"])
    assert np.sqrt(np.mean(error**2)) < bar / 4
    assert error.max() < (2 if version in ("5.0", "5.1") else 1.25) * bar


@pytest.mark.on("torch")
@pytest.mark.oracle
def test_a_trained_model(oracles):
    """Logits, 60 greedy tokens and bits per token of a model that was really trained."""
    rwkv = build_transformer_model(checkpoint_path=oracles / "trained/tiny-rwkv-6v0-1m-FP32.pth")
    answers = np.load(next((oracles / "trained").glob("text*.npz")), allow_pickle=True)
    ids = answers["tokens"].astype("int32")
    logits, state = rwkv.forward(ids[None, :-1])
    logits = ops.convert_to_numpy(logits)[0]
    assert np.abs(logits - answers["logits"][:-1]).max() < 1e-4 * np.abs(answers["logits"]).max()
    written = rwkv.generate(ids[-1:], 61, state=state, stop_token_ids=None, strip_prompt=True, sampling="greedy")
    assert written == answers["greedy"].tolist()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    bits = -log_p[np.arange(len(ids) - 1), ids[1:]].mean() / np.log(2)
    assert bits == pytest.approx(1.131, abs=2e-3)


@pytest.mark.oracle
def test_weights_saved_by_bert4keras3(oracles):
    folder = oracles / "bert4keras3"
    rwkv = build_transformer_model(
        config_path=folder / "config.json",
        keras_weights_path=folder / "model.weights.h5",
        model="rwkv6",
        with_lm="softmax",
    )
    answers = np.load(folder / "probs.npz")
    x = answers["x"].astype("int32")
    got = rwkv.model.predict(x, verbose=0)
    assert np.abs(got - answers["probs"])[x != 0].max() < 1e-4 * answers["probs"].max()
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == rwkv.config.hidden_size
