"""A text that is read in segments, each in a step of its own, costs what it costs in one pass."""

import contextlib

import keras
import numpy as np
import pytest

from bert4keras_rwkv.layers import NextTokenLoss
from bert4keras_rwkv.training import PackedBatches, keras_dataset
from bert4keras_rwkv.training.callbacks import TrainingCheckpoint
from bert4keras_rwkv.training.metrics import Perplexity, TokenAccuracy
from tests.models.small import small_model, texts

B, T, SEGMENTS = 2, 7, 4
VERSIONS = [
    pytest.param("4", marks=pytest.mark.on("torch")),
    "7",
    *(pytest.param(version, marks=pytest.mark.slow) for version in ("5.2", "6")),
]


def text_of(rng, resets):
    """Ids and `Reset` of two long rows; documents begin also at the first and the last token of a segment."""
    ids, reset = texts(rng, B, T * SEGMENTS), np.zeros((B, T * SEGMENTS), "int32")
    if resets:
        reset[0, [0, 5, T, 2 * T - 1]] = reset[1, [3, 2 * T, 2 * T + 1, 4 * T - 1]] = 1
    return ids, reset


def segments(*arrays):
    """Lists of the inputs of each segment."""
    return [[array[:, i : i + T] for array in arrays] for i in range(0, T * SEGMENTS, T)]


def compiled(rwkv, rate=0.0, **options):
    model = rwkv.segment_trainer(B, **options)
    model.compile(keras.optimizers.SGD(rate))
    return model


def one_pass(rwkv):
    """A function of ids and reset: the mean cross-entropy as `training_model` gives it."""
    model = rwkv.training_model()
    model.compile()
    return lambda *inputs: model.test_on_batch([*inputs])


def counted(reset):
    """(segments,): how many tokens are predicted in each, all but the first of a row and of a document."""
    predicted = reset == 0
    predicted[:, 0] = False
    return predicted.reshape(B, SEGMENTS, T).sum((0, 2))


@pytest.fixture(scope="module")
def small():
    return small_model("6", packed=True, num_hidden_layers=1)


@pytest.mark.parametrize("version", VERSIONS)
def test_segments_are_one_long_pass(version, rng):
    """With documents that begin anywhere, and without: 1e-5, float32 sums in another order."""
    rwkv = small_model(version, packed=True)
    model, whole = compiled(rwkv), one_pass(rwkv)
    for resets in (True, False):
        ids, reset = text_of(rng, resets)
        counts = counted(reset)
        model.reset_states()
        got = [model.train_on_batch(segment) for segment in segments(ids, reset)]
        assert np.dot(got, counts) == pytest.approx(whole(ids, reset) * counts.sum(), rel=1e-5)


@pytest.mark.on("torch")
def test_evaluation_does_not_disturb_training(small, rng):
    """It carries states of its own: between two steps of training it changes neither their losses nor its own."""
    model, (ids, reset) = compiled(small), text_of(rng, True)
    want = [model.train_on_batch(segment) for segment in segments(ids, reset)]
    model.reset_states()
    trained, evaluated = [], []
    for segment in segments(ids, reset):
        trained.append(model.train_on_batch(segment))
        evaluated.append(model.test_on_batch(segment))
    assert trained == want
    assert evaluated == pytest.approx(want, rel=1e-5)


def test_rows_without_a_reset_begin_a_text(small, rng):
    """The first segment costs what it costs alone, after `reset_states` too, whatever was read before."""
    model = compiled(small)
    first = [array[:, :T] for array in text_of(rng, False)]
    alone = one_pass(small)(*first)
    got = model.train_on_batch(first), model.train_on_batch(first)
    model.reset_states()
    assert model.train_on_batch(first) == got[0] == pytest.approx(alone, rel=1e-5)
    assert got[1] != pytest.approx(alone, rel=1e-3)


def test_gradient_of_a_segment(rng):
    """That of all its tokens, the first too, with the state before it held fixed: a state given to `RWKV.model`, whose
    loss is Keras' own. 1e-4 of the largest, float32.
    """
    rwkv = small_model(packed=True, input_state=True, num_hidden_layers=1)
    model = compiled(rwkv, 1.0)
    ids, reset = text_of(rng, False)
    ids = ids[:, : 2 * T]
    before = {name: array.copy() for name, array in rwkv.weights().items()}
    state = rwkv.forward(ids[:, : T - 1])[1].numpy()
    for variable, value in zip(model.get_layer("token_loss").trained, (state.wkv, state.shift), strict=False):
        variable.assign(value)
    model.get_layer("token_loss").trained[2].assign(ids[:, T - 1 : T])
    model.train_on_batch([ids[:, T:], reset[:, T : 2 * T]])
    got = {name: before[name] - array for name, array in rwkv.weights().items()}

    rwkv = small_model(packed=True, input_state=True, num_hidden_layers=1)
    plain = rwkv.model
    plain.compile(keras.optimizers.SGD(1.0), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    zeros = np.zeros((B, T), "int32")
    names = [tensor.name for tensor in plain.inputs]
    values = {"Input-Token": ids[:, T - 1 : -1], "Stack-States": state.wkv, "Stack-Last-X": state.shift, "Reset": zeros}
    plain.train_on_batch([values[name] for name in names], ids[:, T:])
    for name, array in rwkv.weights().items():
        want = before[name] - array
        assert np.abs(got[name] - want).max() <= 1e-4 * max(np.abs(want).max(), 1e-3), name


def test_documents_begin_in_the_tuned_state(rng):
    """Inside a segment, at its first token and without a reset; only the state trains, with a LoRA also that."""
    rwkv = small_model("7", packed=True, remat=True, num_hidden_layers=1)
    rwkv.enable_state_tuning(time_shift_tuning=True)
    rwkv.enable_lora(2)
    for layer in rwkv.backbone.start_states:
        for variable in layer.variables:
            variable.assign(rng.normal(0, 1, tuple(variable.shape)))
    model = compiled(rwkv)
    ids, reset = text_of(rng, True)
    counts = counted(reset)
    want = one_pass(rwkv)(ids, reset) * counts.sum()
    got = [model.train_on_batch(segment) for segment in segments(ids, reset)]
    assert np.dot(got, counts) == pytest.approx(want, rel=1e-5)
    kinds = {variable.path.split("/")[-1] for variable in model.trainable_variables}
    assert kinds == {"wkv", "time_x", "channel_x", "lora_kernel_a", "lora_kernel_b"}


def test_answers_and_hits(small, rng):
    """Only answers count, the first token of a segment too; the second output counts the likeliest tokens. Metrics
    see both, and count by token; rows begin with a `Reset`, as `PackedBatches` has it.
    """
    ids, reset = text_of(rng, True)
    reset[:, 0] = 1
    answer = (rng.random(ids.shape) < 0.5).astype("int32")
    loss = NextTokenLoss(answer_mask=True, pad_token_id=None)
    whole, parts = small.training_model(loss, accuracy=True), small.segment_trainer(B, loss, accuracy=True)
    assert [tensor.name for tensor in parts.inputs] == ["Input-Token", "Answer-Mask", "Reset"]
    results = []
    for model, batches in ((whole, [[ids, answer, reset]]), (parts, segments(ids, answer, reset))):
        model.compile(metrics=[Perplexity(), TokenAccuracy()])
        data = (({tensor.name: x for tensor, x in zip(model.inputs, batch, strict=True)},) for batch in batches)
        results.append(model.evaluate(data, steps=len(batches), verbose=0, return_dict=True))
    for name in ("perplexity", "token_accuracy"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-5)
    assert 0 < results[0]["token_accuracy"] < 1


def test_sample_weights_of_segments(small, rng):
    """A token of weight 0 costs nothing, the first of a segment too: 0 and 1 are an `Answer-Mask`."""
    ids, reset = text_of(rng, True)
    answer = (rng.random(ids.shape) < 0.5).astype("int32")
    masked = compiled(small, loss=NextTokenLoss(answer_mask=True, pad_token_id=None))
    weighted = compiled(small, loss=NextTokenLoss(pad_token_id=None))
    want = [masked.test_on_batch(segment) for segment in segments(ids, answer, reset)]
    got = [
        weighted.test_on_batch([ids, reset], sample_weight=weight.astype("float32"))
        for ids, reset, weight in segments(ids, reset, answer)
    ]
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.on("torch")
def test_hundreds_of_segments_stay_finite(rng):
    """The losses of 300 steps in one document, and at a learning rate that learns: they fall."""
    rwkv = small_model("7", packed=True, num_hidden_layers=1)
    document = np.tile(texts(rng, 1, 11)[0], 300 * B * T // 11 + 1)[: 300 * B * T - 1]
    batches = PackedBatches([document], T, B, carry=True)
    model, losses = rwkv.segment_trainer(B), []
    model.compile(keras.optimizers.Adam(3e-3))
    seen = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    model.fit(keras_dataset(batches), steps_per_epoch=len(batches), verbose=0, callbacks=[seen])
    steps = np.diff(np.arange(1, 301) * losses, prepend=0)  # of means from the first step on
    assert len(batches) == 300 and np.isfinite(steps).all()
    assert steps[-30:].mean() < 0.5 * steps[:30].mean()


class Stopped(Exception):
    """Stands for what ends a process."""


@pytest.mark.on("torch")
def test_it_goes_on_after_an_interruption(tmp_path):
    """In bfloat16, stopped inside a document and started again: the losses and metrics of a run that was not stopped,
    bit by bit, for the carried state is in the checkpoint.
    """
    batches = PackedBatches([np.arange(number, number + 40) % 40 for number in range(3)], T, B, carry=True)
    model = small_model(packed=True, num_hidden_layers=1, dtype="bfloat16").segment_trainer(B)
    begin = [variable.numpy().copy() for variable in model.variables]
    model.compile(keras.optimizers.SGD(1e-2, 0.9), metrics=[Perplexity()])

    def run(folder, stop=0):
        for variable, value in zip(model.variables, begin, strict=True):
            variable.assign(value)
        for variable in model.optimizer.variables[2:] if model.optimizer.built else []:
            variable.assign(np.zeros(variable.shape))
        losses = []

        def seen(batch, logs):
            losses.append((logs["loss"], logs["perplexity"]))
            if len(losses) == stop:
                raise Stopped

        data = keras_dataset(batches)
        callbacks = [
            TrainingCheckpoint(folder, 1, data),  # written before the stop is seen
            keras.callbacks.LambdaCallback(on_train_batch_end=seen),
        ]
        options = {"steps_per_epoch": 6, "epochs": 2, "verbose": 0, "callbacks": callbacks}
        with pytest.raises(Stopped) if stop else contextlib.nullcontext():
            model.fit(data, **options)
        return losses

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "stopped", 8) == whole[:8]
    model.compile(keras.optimizers.SGD(1e-2, 0.9), metrics=[Perplexity()])  # nothing is built yet, as in a new process
    assert run(tmp_path / "stopped") == whole[8:]
    assert {variable.dtype for variable in model.variables} >= {"float32", "bfloat16", "int32"}


def test_what_it_needs_is_said(small):
    with pytest.raises(ValueError, match="build with packed=True"):
        small_model().segment_trainer(2)
    with pytest.raises(ValueError, match="`batch_size` is how many"):
        small.segment_trainer(0)
    with pytest.raises(ValueError, match=r"the states of 2 rows\. Received: 3"):
        small.segment_trainer(2)([np.zeros((3, T), "int32")] * 2)
