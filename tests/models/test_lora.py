"""LoRA: only it trains, it is what it adds to the weights, and an adapter file brings it back exactly."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.layers import NextTokenLoss
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.models.lora import adapted
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import WeightsError, write_pth, write_safetensors
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors
from tests.gradients import quick
from tests.models.small import arrays, assert_close, lawful, small_model, texts

pytestmark = pytest.mark.once

PLAIN = ("receptance", "key", "value", "gate", "output")


def tuned(rng, version="6", steps=3, **options):
    """A model whose LoRA has trained a little."""
    rwkv = small_model(version)
    rwkv.enable_lora(2, **options)
    return fitted(rwkv, rng, steps)


def fitted(rwkv, rng, steps=3):
    """The same model after a few steps; on TensorFlow building their graph would take longer than they do."""
    model = rwkv.training_model(NextTokenLoss(pad_token_id=None))
    model.compile(keras.optimizers.Adam(0.02), run_eagerly=keras.config.backend() == "tensorflow")
    model.fit(texts(rng, 4, 12), epochs=steps, batch_size=4, shuffle=False, verbose=0)
    return rwkv


def bases(rwkv):
    """The weights under LoRA as they are."""
    return [ops.convert_to_numpy(variable) for variable in rwkv.backbone.non_trainable_variables]


@pytest.mark.parametrize("version", lawful("7"))
def test_only_lora_trains(version, rng):
    """Two matrices for every projection of the blocks; all else stays, bit for bit, and the loss falls."""
    rwkv, ids = small_model(version), texts(rng, 4, 12)
    kernels = sum("block_" in v.path and v.path.endswith("/kernel") for v in rwkv.backbone.variables)
    rwkv.enable_lora(2)
    assert len(rwkv.backbone.trainable_variables) == 2 * kernels
    before = bases(rwkv)
    model = rwkv.training_model(NextTokenLoss(pad_token_id=None))
    model.compile(keras.optimizers.Adam(0.02))
    losses = model.fit(ids, epochs=4, batch_size=4, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for then, now in zip(before, bases(rwkv), strict=True):
        np.testing.assert_array_equal(now, then)


def test_weights_with_lora_are_the_model(tmp_path, rng):
    """A file written while LoRA is on gives the logits of the model with it."""
    rwkv, ids = tuned(rng), texts(rng, 1, 9)
    write_pth(tmp_path / "a.pth", rwkv.weights())
    again = build_transformer_model(checkpoint_path=tmp_path / "a.pth")
    assert_close(arrays(*again.forward(ids)), arrays(*rwkv.forward(ids)))
    assert np.abs(arrays(*rwkv.forward(ids))[0] - arrays(*small_model().forward(ids))[0]).max() > 1e-3


@pytest.mark.on("torch")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_on_a_quantised_base(mode, rng):
    """Keras' quantised base under LoRA and state tuning: the training loss is that of `forward`, it falls, all that is
    tuned moves, and the base stays.
    """
    rwkv, ids = small_model(num_hidden_layers=1), texts(rng, 2, 12)
    rwkv.model.quantize(mode)
    rwkv.enable_lora(2)
    rwkv.enable_state_tuning(time_shift_tuning=True)
    model = rwkv.training_model(NextTokenLoss(pad_token_id=None))
    logits = ops.convert_to_numpy(rwkv.forward(ids)[0]).astype("float64")[:, :-1]
    cost = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    loss = quick(lambda ids: model([ids]))(ids)
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(cost.mean(), rel=1e-2)  # int8 activations
    before = bases(rwkv)
    model.compile(keras.optimizers.Adam(0.02))
    losses = model.fit(ids, epochs=4, batch_size=2, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(ops.convert_to_numpy(variable).any() for variable in rwkv.backbone.trainable_variables)
    for then, now in zip(before, bases(rwkv), strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.on("torch")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_an_adapter_of_a_quantised_base_is_one_of_the_float_base(tmp_path, rng):
    """The same numbers there and back, though 4-bit kernels have other shapes; weights of the rounded base, and merging
    into it, are refused.
    """
    rounded, plain = small_model(num_hidden_layers=1), small_model(num_hidden_layers=1)
    rounded.model.quantize("int4")
    rounded.enable_lora(2)
    rounded.enable_state_tuning()
    for variable in rounded.backbone.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape))
    rounded.save_adapter(tmp_path / "a.safetensors")
    plain.load_adapter(tmp_path / "a.safetensors")
    plain.save_adapter(tmp_path / "b.safetensors")
    for variable in rounded.backbone.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    rounded.load_adapter(tmp_path / "b.safetensors")
    rounded.save_adapter(tmp_path / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    plain.merge_adapter()
    for refused in (rounded.merge_adapter, rounded.weights):
        with pytest.raises(ValueError, match="quantise"):
            refused()


@pytest.mark.parametrize("order", ["lora first", "state first"])
def test_together_with_state_tuning(order, rng):
    """Either order of the two calls trains the same variables."""
    rwkv = small_model()
    calls = [lambda: rwkv.enable_lora(2, targets=PLAIN), lambda: rwkv.enable_state_tuning(time_shift_tuning=True)]
    for call in calls if order == "lora first" else calls[::-1]:
        call()
    names = {variable.path.rpartition("/")[2] for variable in rwkv.backbone.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b", "wkv", "time_x", "channel_x"}
    assert len(rwkv.backbone.trainable_variables) == 2 * (2 * 8 + 3)


@pytest.mark.on("torch")
def test_adapter_there_and_back(tmp_path, rng):
    """LoRA and state in one file: the same logits, the same variables that train, and they go on training alike."""
    rwkv = small_model()
    rwkv.enable_lora(2, alpha=4)
    rwkv.enable_state_tuning(time_shift_tuning=True)
    fitted(rwkv, rng)
    rwkv.save_adapter(tmp_path / "a.safetensors")
    again, ids = small_model(), texts(rng, 2, 9)
    again.forward(ids)  # programs compiled before do not stay as they were
    again.load_adapter(tmp_path / "a.safetensors")
    assert_close(arrays(*again.forward(ids)), arrays(*rwkv.forward(ids)), bar=1e-6)
    a, b = (sorted(v.path for v in model.backbone.trainable_variables) for model in (rwkv, again))
    assert a == b
    for model in (rwkv, again):
        fitted(model, np.random.default_rng(3), 1)
    assert_close(arrays(*again.forward(ids)), arrays(*rwkv.forward(ids)), bar=1e-5)


@pytest.mark.on("torch")
def test_merge_scale_and_stack(tmp_path, rng):
    """Merged, the model is what it was and LoRA is zero; twice half of an adapter is the adapter."""
    rwkv, ids = tuned(rng, targets=PLAIN), texts(rng, 1, 9)
    rwkv.save_adapter(tmp_path / "a.safetensors")
    want = arrays(*rwkv.forward(ids))
    rwkv.merge_adapter()
    assert_close(arrays(*rwkv.forward(ids)), want)
    stacked = small_model()
    for _ in range(2):
        stacked.load_adapter(tmp_path / "a.safetensors", scale=0.5)
        stacked.merge_adapter()
    assert_close(arrays(*stacked.forward(ids)), want)


def with_adapter(rng, path, rank, alpha, targets, state=None):
    """The file of a random adapter for `small_model`, and what it adds to each kernel, as a function."""
    rwkv = small_model()
    rwkv.enable_lora(rank, alpha, targets)
    if state is not None:
        rwkv.enable_state_tuning()
        rwkv.set_tuned_state(RWKVState(np.full_like(state.wkv, len(targets[0])), state.shift, state.model))
    for layer in adapted(rwkv.backbone).values():
        for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
            variable.assign(0.2 * rng.standard_normal(variable.shape))
    rwkv.save_adapter(path)
    return path, rwkv


def test_several_at_once(tmp_path, rng):
    """Adapters of different ranks, alphas and targets, each scaled: kernels are the base and the scaled changes, the
    state is their average, weighted with the scales. One LoRA of both ranks trains on.
    """
    zero = RWKVState.zeros(small_model().config)
    one, first = with_adapter(rng, tmp_path / "a.safetensors", 2, 8, ("key", "decay_low_rank"), zero)
    other, second = with_adapter(rng, tmp_path / "b.safetensors", 3, None, ("value", "key"), zero)
    both, base = small_model(), small_model().weights()
    both.load_adapter([one, other], [0.5, 1.5])
    for name, array in both.weights().items():
        want = base[name] + 0.5 * (first.weights()[name] - base[name]) + 1.5 * (second.weights()[name] - base[name])
        np.testing.assert_allclose(array, want, atol=2e-6)
    np.testing.assert_allclose(both.tuned_state().wkv, (0.5 * len("key") + 1.5 * len("value")) / 2)
    assert {layer.lora_rank for layer in adapted(both.backbone).values()} == {5}


def test_one_after_the_other(tmp_path, rng):
    """What was merged makes room for an adapter of another rank; what was not is refused."""
    one, first = with_adapter(rng, tmp_path / "a.safetensors", 2, 8, ("key",))
    other, second = with_adapter(rng, tmp_path / "b.safetensors", 3, None, ("value", "key"))
    stacked, base = small_model(), small_model().weights()
    stacked.load_adapter(one)
    with pytest.raises(WeightsError, match="merge_adapter"):
        stacked.load_adapter(other)
    stacked.merge_adapter()
    before = stacked.backbone.trainable_variables
    stacked.load_adapter(one, scale=0)
    stacked.load_adapter(one, scale=0)
    assert all(a is b for a, b in zip(before, stacked.backbone.trainable_variables, strict=True))  # what fits stays
    stacked.load_adapter(other, scale=0.5)
    for name, array in stacked.weights().items():
        want = first.weights()[name] + 0.5 * (second.weights()[name] - base[name])
        np.testing.assert_allclose(array, want, atol=2e-6)
    assert len(stacked.backbone.trainable_variables) == 2 * 2 * 4  # key and value of both mixers


def test_what_else_was_tuned(tmp_path, rng):
    """Weights that train beside LoRA, and those alone, come back and train; no other weight is in the file."""
    for with_lora in (True, False):
        rwkv, again = small_model(), small_model()
        rwkv.enable_lora(2)
        if not with_lora:
            for layer in adapted(rwkv.backbone).values():
                layer.lora_kernel_a.trainable = layer.lora_kernel_b.trainable = False
        gamma = rwkv.backbone.variable_at("ln_out/gamma")
        gamma.trainable = True
        gamma.assign(np.arange(16))
        rwkv.save_adapter(tmp_path / "a.safetensors")
        with open_safetensors(tmp_path / "a.safetensors") as tensors:
            assert [name for name in tensors if name.startswith("weights/")] == ["weights/ln_out/gamma"]
        again.load_adapter(tmp_path / "a.safetensors")
        found = again.backbone.variable_at("ln_out/gamma")
        np.testing.assert_array_equal(ops.convert_to_numpy(found), np.arange(16))
        assert found.trainable and not again.backbone.variable_at("ln0/gamma").trainable


@pytest.mark.on("torch")
def test_training_goes_on_from_an_adapter_and_the_optimizer(tmp_path, rng):
    """Four steps are two, then in a new model the adapter and the optimizer's variables, and two more, bit by bit."""

    def trained_on(rwkv, batches, kept=None):
        model = rwkv.training_model(NextTokenLoss(pad_token_id=None))
        model.compile(keras.optimizers.Adam(0.02))
        if kept:
            model.optimizer.build(model.trainable_variables)
            model.optimizer.load_own_variables(kept)
        for ids in batches:
            model.fit(ids, batch_size=2, shuffle=False, verbose=0)
        return model

    data, (whole, again) = [texts(rng, 2, 12) for _ in range(4)], (small_model(num_hidden_layers=1) for _ in range(2))
    whole.enable_lora(2, alpha=4, targets=PLAIN)
    whole.enable_state_tuning(time_shift_tuning=True)
    kept, model = {}, trained_on(whole, data[:2])
    model.optimizer.save_own_variables(kept)
    kept = {name: np.array(ops.convert_to_numpy(value)) for name, value in kept.items()}
    whole.save_adapter(tmp_path / "a.safetensors")
    again.load_adapter(tmp_path / "a.safetensors")
    for ids in data[2:]:
        model.fit(ids, batch_size=2, shuffle=False, verbose=0)
    trained_on(again, data[2:], kept)
    for one, other in zip(again.backbone.trainable_variables, whole.backbone.trainable_variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


@pytest.mark.on("torch")
@pytest.mark.parametrize("suffix", [".pth", ".st"])
def test_files_of_other_projects(tmp_path, suffix, rng):
    """What we write as theirs is merged, and is loaded to go on with, as what it was: `.st` to float16."""
    rwkv, ids = tuned(rng, alpha=8, targets=PLAIN), texts(rng, 1, 9)
    want = arrays(*rwkv.forward(ids))
    rwkv.save_adapter(tmp_path / f"a{suffix}")
    merged, loaded = small_model(), small_model()
    merged.merge_lora(tmp_path / f"a{suffix}")
    loaded.load_adapter(tmp_path / f"a{suffix}")
    for model in (merged, loaded):
        assert_close(arrays(*model.forward(ids)), want, bar=1e-4 if suffix == ".pth" else 3e-3)
    assert len(loaded.backbone.trainable_variables) == 2 * 2 * 8


@pytest.mark.parametrize(
    "misuse, message",
    [
        (lambda r, path: r.save_adapter(path), "Nothing is tuned"),
        (lambda r, path: r.enable_lora(0), "`rank` is a positive"),
        (lambda r, path: (r.enable_lora(2), r.enable_lora(2)), "LoRA is on already"),
        (lambda r, path: r.enable_lora(2, targets=["keys"]), "decay_low_rank, gate, head, key"),
        (lambda r, path: (r.enable_lora(2), r.save_adapter(path.with_suffix(".pth"))), "choose `targets`"),
        (lambda r, path: small_model(num_hidden_layers=1).load_adapter(written(r, path)), "num_hidden_layers 2, not 1"),
        (lambda r, path: (touched(r, 3), r.load_adapter(written(small_model(), path))), "another rank"),
        (lambda r, path: r.load_adapter([written(r, path)] * 2, [1]), "A scale for each"),
        (lambda r, path: r.load_adapter(pth(r, path)), "is no LoRA, PiSSA"),
        (lambda r, path: (r.enable_lora(2), r.merge_adapter(float("nan"))), "`scale` is a finite"),
        (lambda r, path: r.load_adapter([written(r, path)] * 2, [1, float("inf")]), "`scale` is a finite"),
    ],
)
def test_misuse_is_told(misuse, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        misuse(small_model(), tmp_path / "a.safetensors")


def touched(rwkv, rank):
    """A LoRA that adds something."""
    rwkv.enable_lora(rank)
    variable = next(iter(adapted(rwkv.backbone).values())).lora_kernel_b
    variable.assign(np.ones(variable.shape))


def written(rwkv, path):
    """The adapter file of a LoRA that has not trained."""
    rwkv.enable_lora(2)
    rwkv.save_adapter(path)
    return path


def pth(rwkv, path):
    """A model file."""
    write_pth(path.with_suffix(".pth"), rwkv.weights())
    return path.with_suffix(".pth")


def test_nothing_is_loaded_of_a_file_that_does_not_fit(tmp_path, rng):
    """A LoRA with one wrong shape changes no variable and switches nothing on."""
    path = written(small_model(), tmp_path / "a.safetensors")
    with open_safetensors(path) as tensors:
        arrays = {**tensors, "blocks/1/time_mix/key/lora_b": np.zeros((2, 3), "float32")}
        write_safetensors(tmp_path / "b.safetensors", arrays, metadata=tensors.metadata)
    rwkv = small_model()
    with pytest.raises(WeightsError, match=r"'blocks/1/time_mix/key' is \(16, 16\), its LoRA"):
        rwkv.load_adapter(tmp_path / "b.safetensors")
    assert len(rwkv.backbone.trainable_variables) == len(small_model().backbone.trainable_variables)


@pytest.mark.parametrize("wrong", [{"alpha": x} for x in (0, "a", None, np.nan)] + [{"scale": x} for x in ("a", None)])
def test_nothing_is_loaded_with_wrong_numbers(wrong, tmp_path):
    """They are told before anything of a good file is switched on."""
    rwkv, path, (name,) = small_model(num_hidden_layers=1), tmp_path / "a.pth", wrong
    rwkv.enable_lora(2, targets=PLAIN)
    rwkv.save_adapter(path)
    plain = small_model(num_hidden_layers=1)
    with pytest.raises(ValueError, match=f"`{name}` is a .* number, .* Received: {name}="):
        plain.load_adapter(path, **wrong)
    assert not adapted(plain.backbone)


@pytest.mark.on("torch")
def test_another_rank_for_every_projection(tmp_path):
    """A LoRA of zero gives way in each kind of projection."""
    rwkv = small_model(num_hidden_layers=1)
    path = written(small_model(num_hidden_layers=1), tmp_path / "a.safetensors")
    rwkv.enable_lora(3)
    rwkv.load_adapter(path)
    assert {layer.lora_rank for layer in adapted(rwkv.backbone).values()} == {2}
