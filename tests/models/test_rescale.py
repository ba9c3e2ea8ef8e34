"""`rescale_layer`: the residual stream is halved every so many blocks, the logits are what they were."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.models.backbone import Backbone
from tests.models.small import SIZES, VERSIONS, arrays, assert_close, lawful, small_model, texts

CONFIG = RWKVConfig.from_dict({**SIZES, **VERSIONS["6"]})


def loud_model(version, layers, loudness, growth=1.0, start=1.0, **options):
    """A model whose residual stream begins at about `start` and whose mixers add about `loudness` to it, each block's
    `growth` times more than those before.
    """
    rwkv = small_model(version, num_hidden_layers=layers, **options)
    beta = rwkv.backbone.ln0.beta
    beta.assign(beta * start)
    for i, block in enumerate(rwkv.backbone.blocks):
        for layer in (block.time_mix.output_projection, block.channel_mix.value):
            layer.kernel.assign(layer.kernel * (loudness * growth**i))
    return rwkv


@pytest.mark.once
@pytest.mark.parametrize("version", lawful("4", "7"))
def test_the_logits_do_not_change(version, rng):
    """All factors are powers of two: not a bit differs where operations run one by one, as in PyTorch. A compiler may
    join products and sums, and round once where it rounded twice: XLA differs by 1e-6 on a processor with AVX2 when it
    does not optimise, and by nothing when it does. The state is that of the model, too.
    """
    ids = texts(rng, 2, 7)
    want = arrays(*loud_model(version, 3, 30.0, rescale_layer=0).forward(ids))
    got = arrays(*loud_model(version, 3, 30.0, rescale_layer=1).forward(ids))
    assert_close(got, want, bar=0 if keras.backend.backend() == "torch" else 5e-6)


@pytest.mark.on("torch")
@pytest.mark.once
def test_float16_overflows_without_and_is_right_with(rng):
    """The bar of float16, on the root mean square as that of the logits (`test_build.test_half_precision`)."""
    ids, loud = texts(rng, 2, 7), (5, 1000.0, 1.5, 2e4)
    want = ops.convert_to_numpy(loud_model("6", *loud).forward(ids)[0])
    without = loud_model("6", *loud, dtype="float16", rescale_layer=0).forward(ids)[0]
    assert not np.isfinite(ops.convert_to_numpy(without)).all()
    logits, state = loud_model("6", *loud, dtype="float16", rescale_layer=1).forward(ids)
    assert all(np.isfinite(x).all() for x in arrays(logits, state))
    error = ops.convert_to_numpy(logits) - want
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(want**2))


@pytest.mark.parametrize(
    ("dtype", "every"),
    [("float16", 6), ("mixed_float16", 6), ("float32", 0), ("bfloat16", 0), ("mixed_bfloat16", 0)],
)
def test_on_by_itself_for_float16(dtype, every):
    assert Backbone(CONFIG, dtype=dtype).rescale_layer == every
    assert Backbone(CONFIG, dtype=dtype, rescale_layer=3).rescale_layer == 3


def test_a_saved_model_keeps_it():
    """An epsilon that did not fit its scale would show in the logits, if the factor were lost."""
    backbone = Backbone(RWKVConfig.from_dict({**CONFIG.to_dict(), "num_hidden_layers": 5}), rescale_layer=2)
    again = Backbone.from_config(backbone.get_config())
    assert again.rescale_layer == 2
    for each in (backbone, again):
        assert [block.time_mix.scale for block in each.blocks] == [1, 1, 0.5, 0.5, 0.25]
        assert [block.ln2.epsilon for block in each.blocks] == [1e-5, 1e-5, 1e-5 / 4, 1e-5 / 4, 1e-5 / 16]
        assert [block.halve for block in each.blocks] == [False, True, False, True, False]
        assert each.ln_out.epsilon == 1e-5 / 16


@pytest.mark.parametrize("every", [-1, True, 2.0, "6"])
def test_bad_values(every):
    with pytest.raises(ValueError, match="`rescale_layer` is after how many blocks"):
        Backbone(CONFIG, rescale_layer=every)
