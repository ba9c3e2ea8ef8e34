"""Where a model ceases to give numbers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models.finite import not_finite_of
from bert4keras_rwkv.state import RWKVState
from tests.models.small import small_model


@pytest.mark.once
def test_the_first_layer_that_is_not_finite_is_named():
    """By the innermost layer whose output it is; what a mixer does itself, its norm shows. A finite model has none, and
    a state that comes in so is named itself. Blocks that are recomputed are looked into, too.
    """
    rwkv = small_model(num_hidden_layers=1, remat=True)
    ids, state = np.array([[1, 2]], "int32"), RWKVState.zeros(rwkv.config)
    assert not_finite_of(rwkv.backbone, ids, state.wkv, state.shift) is None
    assert not_finite_of(rwkv.backbone, ids, np.full_like(state.wkv, np.inf), state.shift) == "the state"
    for path, named in (
        ("blocks/0/time_mix/value/kernel", "block_0/time_mix/value"),
        ("blocks/0/time_mix/bonus", "block_0/time_mix/norm"),
        ("head/kernel", "head"),
    ):
        variable = rwkv.backbone.variable_at(path)
        kept = ops.convert_to_numpy(variable).copy()
        variable.assign(np.full(variable.shape, np.nan))
        assert not_finite_of(rwkv.backbone, ids, state.wkv, state.shift).endswith(named)
        variable.assign(kept)
    assert rwkv.backbone.remat


@pytest.mark.on("torch")
def test_several_threads_are_each_told():
    rwkv = small_model("6")
    variable = rwkv.backbone.variable_at("blocks/1/channel_mix/key/kernel")
    variable.assign(np.full(variable.shape, np.nan))

    def message(_):
        try:
            return rwkv.generate([1, 2], max_new_tokens=2, stop_token_ids=None)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert all("block_1/channel_mix/key" in one for one in pool.map(message, range(8)))
