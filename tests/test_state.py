"""A state can be cut, joined, stored and read again without a change."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.state import RWKVState


@pytest.fixture
def state(rng):
    return RWKVState(
        rng.standard_normal((3, 2, 2, 8, 8)).astype("float32"),
        rng.standard_normal((3, 4, 1, 16)).astype("float32"),
        "rwkv6",
    )


def same(a, b):
    a, b = a.numpy(), b.numpy()
    np.testing.assert_array_equal(a.wkv, b.wkv)
    np.testing.assert_array_equal(a.shift, b.shift)
    assert a.model == b.model


def test_zeros_have_the_shapes_of_the_config(tiny_config):
    zero = RWKVState.zeros(tiny_config, 5)
    assert zero.wkv.shape == (5, 2, 2, 8, 8)
    assert zero.shift.shape == (5, 4, 1, 16)
    assert not zero.wkv.any()


def test_rows(state):
    assert state[1].batch == 1
    same(state[-1], state[2])
    same(state[1:], RWKVState.stack([state[1], state[2]]))
    same(RWKVState.stack(state.unstack()), state)
    same(state.fork(2)[[0, 2, 4]], state)
    same(state[[True, False, True]], state[[0, 2]])


def test_rows_of_tensors(state):
    """The same on the backend's own arrays."""
    tensors = RWKVState(ops.convert_to_tensor(state.wkv), ops.convert_to_tensor(state.shift), "rwkv6")
    same(tensors[[2, 0]], state[[2, 0]])
    same(tensors.fork(2)[1:5:2], state.fork(2)[[1, 3]])


def test_a_row_that_is_not_there(state):
    with pytest.raises(IndexError, match="no row 3"):
        state[3]


def test_save_and_load(state, tmp_path):
    state.save(tmp_path / "a.state")
    same(RWKVState.load(tmp_path / "a.state"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]


def test_other_files_are_refused(state, tmp_path):
    from safetensors.numpy import save_file

    save_file({"wkv": state.wkv}, tmp_path / "b.state")
    with pytest.raises(ValueError, match="Expected a state file"):
        RWKVState.load(tmp_path / "b.state")
    (tmp_path / "c.state").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not one"):
        RWKVState.load(tmp_path / "c.state")


def test_states_of_two_models_do_not_stack(state):
    other = RWKVState(state.wkv, state.shift, "rwkv7")
    with pytest.raises(ValueError, match="one model"):
        RWKVState.stack([state, other])
