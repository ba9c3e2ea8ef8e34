"""Where a model ceases to give numbers."""

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
