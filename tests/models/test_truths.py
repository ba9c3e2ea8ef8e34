"""The model against independent implementations: NumPy, the `rwkv` package, recorded answers."""

import json

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import write_pth
from tests.models import numpy_rwkv6
from tests.models.small import arrays, assert_close, small_model, texts


def numpy_state(state, layers):
    """The oracle's state as our two arrays."""
    wkv = np.stack([state[f"{i}.wkv"] for i in range(layers)])
    shift = np.stack([state[f"{i}.{part}.x"] for i in range(layers) for part in ("time", "channel")])
    return RWKVState(wkv[None], shift[None, :, None])


@pytest.mark.parametrize("options", [{}, {"num_attention_heads": 1, "attention_head_size": 16, "decomposer_size": 1}])
def test_numpy(options, rng):
    """1e-4 of float64, per tensor."""
    rwkv = small_model(**options)
    ids = texts(rng, 1, 50)
    logits, state = numpy_rwkv6.forward(rwkv.weights(), ids[0])
    got = arrays(*rwkv.forward(ids))
    assert_close(got, arrays(logits[None], numpy_state(state, rwkv.config.num_hidden_layers)))


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


@pytest.mark.oracle
def test_reference_answers(oracles):
    rwkv = build_transformer_model(checkpoint_path=oracles / "reference/reference_6.pth")
    answers = np.load(oracles / "reference/reference_6.npz", allow_pickle=True)

    def state(prefix):
        wkv = np.stack([answers[f"{prefix}_{3 * i + 1}"] for i in range(2)])
        shift = np.stack([answers[f"{prefix}_{3 * i + j}"] for i in range(2) for j in (0, 2)])
        return RWKVState(wkv[None], shift[None, :, None].astype("float32"))

    ids = answers["tokens"][None]
    assert_close(arrays(*rwkv.forward(ids)), arrays(answers["logits"][None], state("state")))
    begun = rwkv.forward(ids, state("init"))
    assert_close(arrays(*begun), arrays(answers["logits_init"][None], state("state_init")))


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "bar"), [("bfloat16", 0.08), ("float16", 0.01)])
def test_reference_answers_in_half_precision(oracles, dtype, bar):
    """The bars that other implementations keep on this model, whose logits have a standard deviation of 1.5."""
    rwkv = build_transformer_model(checkpoint_path=oracles / "reference/reference_6.pth", dtype=dtype)
    answers = np.load(oracles / "reference/reference_6.npz", allow_pickle=True)
    logits = ops.convert_to_numpy(rwkv.forward(answers["tokens"][None])[0])[0]
    assert np.abs(logits - answers["logits"]).max() < bar


@pytest.mark.oracle
def test_a_trained_model(oracles):
    """Logits, 60 greedy tokens and bits per token of a model that was really trained."""
    rwkv = build_transformer_model(checkpoint_path=oracles / "trained/tiny-rwkv-6v0-1m-FP32.pth")
    answers = np.load(next((oracles / "trained").glob("text*.npz")), allow_pickle=True)
    ids = answers["tokens"].astype("int32")
    logits = ops.convert_to_numpy(rwkv.forward(ids[None])[0])[0]
    assert np.abs(logits - answers["logits"]).max() < 1e-4 * np.abs(answers["logits"]).max()
    written = rwkv.generate(ids, len(ids) + 60, stop_token_ids=None, strip_prompt=True, sampling="greedy")
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
