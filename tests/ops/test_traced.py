"""What is recorded on PyTorch is what runs without: the same numbers, of the weights of the moment."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.ops import traced
from bert4keras_rwkv.ops.compile import compiled
from tests.models.small import VERSIONS, arrays, small_model

pytestmark = pytest.mark.on("torch")
ON_TORCH = pytest.mark.skipif(keras.backend.backend() != "torch", reason="only PyTorch records")


@pytest.fixture
def recorded(monkeypatch):
    """How many recordings were made, each at the second call of its kind."""
    made, real = [], traced.Traced._recorded
    monkeypatch.setattr(traced, "CALLS", 2)
    monkeypatch.setattr(traced.Traced, "_recorded", lambda self, *args: made.append(0) or real(self, *args))
    return made


@pytest.fixture
def plain(monkeypatch):
    """Run a function with nothing recorded."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(traced.Traced, "__call__", lambda self, *args: self._function(*args))
            return function()

    return run


def same(got, want):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def step(rwkv, state, batch=1):
    return arrays(*rwkv.prefill(np.full((batch, 1), 5), state))


@ON_TORCH
@pytest.mark.parametrize("kernel", ["auto", "ops"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_bit_for_bit(version, kernel, recorded, plain):
    """Steps of every version, and what draws; a recording for each number of rows, at its second call."""
    rwkv = small_model(version, kernel=kernel)
    for batch, count in ((1, 1), (3, 2), (1, 2)):
        state = rwkv.prefill(np.full((batch, 2), 3))[1]
        want = plain(lambda state=state, batch=batch: step(rwkv, state, batch))
        for _ in range(3):
            same(step(rwkv, state, batch), want)
        assert len(recorded) == count
    options = {"max_new_tokens": 9, "seed": 1, "return_state": True}
    (row, state), (want, end) = rwkv.generate([5], **options), plain(lambda: rwkv.generate([5], **options))
    assert row == want
    same(arrays(state.wkv, state), arrays(end.wkv, end))


@ON_TORCH
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_weights_of_the_moment(quantization, recorded, plain):
    """What is assigned, tuned, quantised or added after a recording counts in the next call."""
    rwkv = small_model("7")
    if quantization is not None:
        rwkv.quantize(quantization)
    state = rwkv.prefill([[3, 4]])[1]

    def assigned():
        gamma = rwkv.backbone.ln_out.gamma
        gamma.assign(gamma + 1)

    def low_rank():
        rwkv.enable_lora(2, targets="key")
        for variable in rwkv.backbone.trainable_variables:
            variable.assign(variable + 0.1)

    changes = [assigned, low_rank, rwkv.enable_state_tuning]
    if quantization is None:
        changes.insert(1, lambda: rwkv.quantize("int4"))
    before = None
    for change in changes:
        change()
        for _ in range(3):
            after = step(rwkv, state)
        same(after, plain(lambda: step(rwkv, state)))
        assert before is None or change == rwkv.enable_state_tuning or np.abs(after[0] - before[0]).max() > 1e-3
        before = after
    assert recorded


@ON_TORCH
def test_threads(recorded, plain):
    """Two threads that call one model from the beginning on."""
    rwkv = small_model("7")
    state = rwkv.prefill([[3, 4]])[1]
    want = plain(lambda: step(rwkv, state))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: step(rwkv, state), range(16)):
            same(got, want)


@ON_TORCH
def test_a_few_programs_are_kept(monkeypatch, recorded):
    """One for each kind of call, those of the last kinds."""
    monkeypatch.setattr(traced, "MOST", 2)
    run = compiled(lambda x: x + 1, again=True)
    for sizes, count in (((1, 1, 1), 1), ((2, 2, 3, 3), 3), ((2, 3), 3), ((1,), 3), ((1,), 4)):
        for size in sizes:
            same([ops.convert_to_numpy(run(np.ones(size)))], [np.full(size, 2.0)])
        assert len(recorded) == count


@ON_TORCH
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x if x[0] > 0 else -x, "depends on the numbers in a tensor"),
        (lambda x: x.add_(1), "changes a tensor"),
    ],
)
def test_what_cannot_be_recorded(function, said, recorded):
    """It is said, and not recorded wrongly."""
    run = compiled(function, again=True)
    run(np.ones(1))
    with pytest.raises(ValueError, match=said):
        run(np.ones(1))
