"""What was made and run before a model was tuned follows it afterwards, or says that it cannot."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models.lora import adapted
from tests.models.small import scatter, small_model, texts

T, L = 3, 6


def asked(rwkv, ids):
    """What answers for a model, each made once -> a function that asks it."""
    cache, training = rwkv.build_cache_model([L], None, output_state=True), rwkv.training_model()
    own = keras.Model(rwkv.model.inputs, ops.sum(rwkv.model.outputs[0], axis=-1))
    training.compile()
    buffer = np.pad(ids, ((0, 0), (0, L - T)))
    return {
        "forward": lambda: rwkv.forward(ids)[0],
        "predict": lambda: rwkv.model.predict(ids, verbose=0),
        "evaluate": lambda: training.test_on_batch([ids]),
        "a cache model's predict": lambda: cache.predict(buffer, verbose=0)[1],
        "a cache model": lambda: cache([buffer])[1],
        "a model of one's own": lambda: own.predict(ids, verbose=0),
    }


def test_every_program_follows(rng):
    """After LoRA and a tuned state each answers as one that is made now: 1e-5, for JAX may compile it otherwise."""
    rwkv, ids = small_model(num_hidden_layers=1, mask_output=[0], temperature=0.0), texts(rng, 2, T)
    ids[ids == 0] = 1
    old = asked(rwkv, ids)
    before = {name: ops.convert_to_numpy(ask()) for name, ask in old.items()}
    rwkv.enable_lora(2, targets="key")
    rwkv.enable_state_tuning()
    scatter(rwkv, 1)
    for name, ask in asked(rwkv, ids).items():
        got, want = ops.convert_to_numpy(old[name]()), ops.convert_to_numpy(ask())
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.abs(got - before[name]).max() > 1e-3, name


def test_an_optimizer_of_other_variables(rng):
    """A model that has trained is compiled anew before it trains on what is tuned."""
    rwkv, ids = small_model(num_hidden_layers=1), texts(rng, 2, T)
    model = rwkv.training_model()
    model.compile(keras.optimizers.SGD(0.1))
    model.optimizer.build(model.trainable_variables)  # as the first step does
    model.optimizer.iterations.assign(1)
    rwkv.enable_lora(2, targets="key")
    with pytest.raises(ValueError, match="must call `compile"):
        model.train_on_batch([ids])


def changed_by(rwkv, change):
    """How often a user of the backbone is told to forget its programs."""

    class User:
        told = 0

        def forget_programs(self):
            self.told += 1

    user = User()
    rwkv.backbone.used_by(user)
    change()
    return user.told


@pytest.mark.on("torch")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_every_change_is_told(tmp_path):
    """Also those that go through Keras' layers alone. New values are no change."""
    rwkv, ranked = small_model(num_hidden_layers=1), small_model(num_hidden_layers=1)
    ranked.enable_lora(3, targets="key")
    ranked.save_adapter(tmp_path / "a.safetensors")
    assert changed_by(rwkv, lambda: rwkv.enable_lora(2, targets="value"))
    assert changed_by(rwkv, lambda: rwkv.load_adapter(tmp_path / "a.safetensors"))
    assert not changed_by(rwkv, lambda: rwkv.load_adapter(tmp_path / "a.safetensors", 0.5))
    assert changed_by(rwkv, rwkv.enable_state_tuning)
    assert not changed_by(rwkv, lambda: (rwkv.set_tuned_state(rwkv.tuned_state()), rwkv.merge_adapter()))
    assert changed_by(rwkv, lambda: rwkv.backbone.head.enable_lora(1))
    assert changed_by(rwkv, lambda: adapted(rwkv.backbone)["head"].drop_lora())
    assert changed_by(rwkv, lambda: rwkv.model.quantize("int8"))
