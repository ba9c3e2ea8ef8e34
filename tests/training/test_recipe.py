"""The authors' optimizer is AdamW with three kinds of variables, on every backend, through everything Keras does."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.training.recipe import BETAS, EPSILON, authors_optimizer, groups, warm_up_cosine
from tests.models.small import SIZES, VERSIONS, small_model

# What learns faster and what decays in block 0, by the names of the authors' files; emb.weight and head.weight decay.
ATTENTION = {f"att.{name}.weight" for name in ("receptance", "key", "value", "output")}
CHANNEL = {f"ffn.{name}.weight" for name in ("receptance", "key", "value")}
GROUPS = {
    "4": ({"att.time_decay": 2, "att.time_first": 3}, ATTENTION | CHANNEL),
    "5.0": ({"att.time_decay": 2}, ATTENTION | CHANNEL),
    "5.0 time_first": ({"att.time_decay": 2, "att.time_first": 3}, ATTENTION | CHANNEL),
    "5.2": ({"att.time_decay": 2}, ATTENTION | CHANNEL | {"att.gate.weight"}),
    "6": ({"att.time_decay": 2}, ATTENTION | CHANNEL | {"att.gate.weight"}),
    "7": ({"att.w0": 2}, ATTENTION | {"ffn.key.weight", "ffn.value.weight"}),
}


def official_names(rwkv):
    """{path of a variable: the official name of its (first) tensor}"""
    from bert4keras_rwkv.versions.table import filled

    return {rwkv.backbone.variable_at(rule.path).path: rule.names[0] for rule in filled(rwkv.config.rules())}


@pytest.mark.parametrize("version", GROUPS)
def test_what_decays_and_what_learns_faster(version):
    """As `configure_optimizers` of the authors sorts the parameters of each version."""
    rwkv = build_transformer_model(**{**SIZES, **VERSIONS[version]})
    names = official_names(rwkv)
    rates, decayed = groups(rwkv)
    faster, heavy = GROUPS[version]
    layers = range(SIZES["num_hidden_layers"])
    assert {names[path]: rate for path, rate in rates.items()} == {
        f"blocks.{i}.{name}": rate for i in layers for name, rate in faster.items()
    }
    assert {names[path] for path in decayed} == {"emb.weight", "head.weight"} | {
        f"blocks.{i}.{name}" for i in layers for name in heavy
    }


def adamw(value, gradients, rates, weight_decay):
    """NumPy's AdamW in float64, as Loshchilov and Hutter write it, epsilon as in Keras. rates: of the steps."""
    beta_1, beta_2 = BETAS
    m, v, value = 0.0, 0.0, value.astype("float64")
    for step, (gradient, (own, common)) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = beta_1 * m + (1 - beta_1) * gradient, beta_2 * v + (1 - beta_2) * gradient**2
        scale = (1 - beta_2**step) ** 0.5 / (1 - beta_1**step)
        value = value * (1 - common * weight_decay) - own * scale * m / (v**0.5 + EPSILON)
    return value


def assert_moved(rwkv, before, steps, rates, weight_decay):
    """Each weight is where NumPy's AdamW takes it. steps: gradients of all variables; 2e-6: float32."""
    faster, decayed = groups(rwkv)
    for variable, old, *given in zip(rwkv.backbone.trainable_variables, before, *steps, strict=True):
        own = [(rate * faster.get(variable.path, 1), rate) for rate in rates]
        want = adamw(old, given, own, weight_decay if variable.path in decayed else 0)
        np.testing.assert_allclose(ops.convert_to_numpy(variable), want, atol=2e-6)


@pytest.fixture(scope="module")
def tiny():
    return small_model("4", hidden_size=8, num_hidden_layers=1, vocab_size=12, intermediate_size=8)


def gradients_of(variables, steps, seed=0):
    generator = np.random.default_rng(seed)
    return [[generator.normal(0, 1, v.shape).astype("float32") for v in variables] for _ in range(steps)]


def arrays(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def test_each_variable_moves_as_adamw_says(tiny):
    """A decay base moves twice as far as it would with the learning rate of all, a vector does not decay, a matrix
    does.
    """
    variables = tiny.backbone.trainable_variables
    optimizer = authors_optimizer(tiny, 0.01, weight_decay=0.5, global_clipnorm=None)
    before, steps = arrays(variables), gradients_of(variables, 2)
    for gradients in steps:
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    assert_moved(tiny, before, steps, [0.01, 0.01], 0.5)


@pytest.mark.on("torch")
def test_accumulated_and_clipped_gradients_follow_the_schedule(tiny):
    """Four batches, two a step: the step is that of their mean, clipped to the common norm, at the schedule's rate of
    the second batch.
    """
    variables = tiny.backbone.trainable_variables
    schedule = warm_up_cosine(0.01, 8, warm_up=2)
    optimizer = authors_optimizer(tiny, schedule, weight_decay=0.5, gradient_accumulation_steps=2)
    before, batches = arrays(variables), gradients_of(variables, 4)
    for gradients in batches:
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    steps = [[(a + b) / 2 for a, b in zip(*batches[i : i + 2], strict=True)] for i in (0, 2)]
    norms = [sum((g**2).sum() for g in step) ** 0.5 for step in steps]
    assert min(norms) > 1
    clipped = [[g / norm for g in step] for step, norm in zip(steps, norms, strict=True)]
    assert_moved(tiny, before, clipped, [float(schedule(1)), float(schedule(3))], 0.5)


def test_a_weight_without_gradient_stays(tiny):
    """Rows of the embedding that no text uses have gradient 0: epsilon, small as it is, makes no NaN of it."""
    variables = tiny.backbone.trainable_variables
    optimizer = authors_optimizer(tiny, weight_decay=0)
    before = arrays(variables)
    optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
    for old, new in zip(before, arrays(variables), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.on("torch")
def test_fit_and_a_saved_optimizer_that_goes_on(tiny, tmp_path):
    """`fit` with accumulation and a moving average, which takes the weights' place at its end. Then model and optimizer
    from one `.keras` file: another step from the same gradients gives the same weights.
    """
    model = tiny.training_model()
    schedule = warm_up_cosine(0.01, 8, warm_up=2)
    model.compile(authors_optimizer(tiny, schedule, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5))
    ids = np.random.default_rng(1).integers(1, 12, (8, 6)).astype("int32")
    history = model.fit(ids, batch_size=2, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    averages = model.optimizer._model_variables_moving_average
    for weight, average in zip(arrays(model.trainable_variables), arrays(averages), strict=True):
        np.testing.assert_array_equal(weight, average)
    model.save(tmp_path / "trained.keras")
    again = keras.saving.load_model(tmp_path / "trained.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for one in (model, again):
        for gradients in gradients_of(model.trainable_variables, 2):
            one.optimizer.apply([ops.convert_to_tensor(g) for g in gradients], one.trainable_variables)
    for ours, theirs in zip(arrays(model.variables), arrays(again.variables), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_what_trains_is_named():
    """After `enable_lora` the frozen weights are none of the optimizer's business; made before, it says so."""
    rwkv = small_model("6", hidden_size=16, num_hidden_layers=1)
    before = authors_optimizer(rwkv)
    rwkv.enable_lora(2)
    rates, decayed = groups(rwkv)
    assert not rates and not decayed
    with pytest.raises(ValueError, match="this model does not train"):
        before.build(rwkv.backbone.trainable_variables)
    authors_optimizer(rwkv).build(rwkv.backbone.trainable_variables)


def test_schedule_is_the_authors():
    """A straight line from a hundredth, then half a cosine: at its ends, in its middle, and behind. 1e-6."""
    schedule = warm_up_cosine(0.6, 110, warm_up=10, final=0.1)
    got = [float(schedule(step)) for step in (0, 5, 10, 60, 110, 200)]
    assert got == pytest.approx([0.006, 0.303, 0.6, 0.35, 0.1, 0.1], abs=1e-6)
    assert float(warm_up_cosine(0.6, 10, warm_up=0)(10)) == pytest.approx(0.01)


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": 1e-40}])
def test_an_epsilon_of_nothing_is_refused(tiny, wrong):
    with pytest.raises(ValueError, match="`epsilon` keeps Adam"):
        authors_optimizer(tiny, **wrong)


def test_float16_weights_are_refused():
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        authors_optimizer(small_model("4", num_hidden_layers=1, dtype="float16"))


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warm_up=10, steps=10"):
        warm_up_cosine(1e-3, 10, warm_up=10)
