"""A state comes through every kind of file with its orientation, and what does not belong to the model is refused."""

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth, write_safetensors
from bert4keras_rwkv.weights.part_files import open_part
from bert4keras_rwkv.weights.states import NAME, read_state, state_sizes, write_state
from tests.official import official_weights

pytestmark = pytest.mark.backend_free


@pytest.fixture
def state(rng, tiny_config):
    """One text's matrices, different in every place, as float16 can hold them, and no shift vectors."""
    wkv = rng.standard_normal((1, 2, 2, 8, 8)).astype("float16").astype("float32")
    return RWKVState(wkv, RWKVState.zeros(tiny_config).shift, "rwkv6")


def time_state(state):
    """What RWKV-LM would save: [head, value, key], written down here once more, index by index."""
    matrices = {}
    for layer in range(2):
        matrix = np.empty((2, 8, 8), "float32")
        for key in range(8):
            for value in range(8):
                matrix[:, value, key] = state.wkv[0, layer, :, key, value]
        matrices[f"blocks.{layer}.att.time_state"] = matrix
    return matrices


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pth_is_value_key(state, tiny_config, tmp_path, dtype):
    write_pth(tmp_path / "a.pth", time_state(state), dtype)
    read = read_state(tmp_path / "a.pth", tiny_config)
    wanted = state.wkv.astype(dtype).astype("float32")
    assert read.wkv.dtype == np.float32 and read.model == "rwkv6"
    np.testing.assert_array_equal(read.wkv, wanted)
    assert read.shift.shape == (1, 4, 1, 16) and not read.shift.any()


@pytest.mark.parametrize("suffix", [".st", ".state"])
def test_a_file_of_web_rwkv_is_key_value(state, tiny_config, tmp_path, suffix):
    matrices = {name: matrix.transpose(0, 2, 1) for name, matrix in time_state(state).items()}
    write_safetensors(tmp_path / f"a{suffix}", matrices, "float16")
    np.testing.assert_array_equal(read_state(tmp_path / f"a{suffix}", tiny_config).wkv, state.wkv)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_that_web_rwkv_cannot_have_written_are_value_key(state, tiny_config, tmp_path, dtype):
    write_safetensors(tmp_path / "a.safetensors", time_state(state), dtype)
    wanted = state.wkv.astype(dtype).astype("float32")
    np.testing.assert_array_equal(read_state(tmp_path / "a.safetensors", tiny_config).wkv, wanted)


def test_what_may_be_both_asks_for_the_layout(state, tiny_config, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", time_state(state), "float16")
    with pytest.raises(WeightsError, match=r"layout='st'.*or layout='pth'"):
        read_state(tmp_path / "a.safetensors", tiny_config)
    np.testing.assert_array_equal(read_state(tmp_path / "a.safetensors", tiny_config, "pth").wkv, state.wkv)
    turned = state.wkv.swapaxes(-1, -2)
    np.testing.assert_array_equal(read_state(tmp_path / "a.safetensors", tiny_config, "st").wkv, turned)


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_state_that_was_merged_into_a_model(state, tiny_config, tmp_path, write, rng):
    write(tmp_path / "model", official_weights("6", rng) | time_state(state))
    np.testing.assert_array_equal(read_state(tmp_path / "model", tiny_config).wkv, state.wkv)


@pytest.mark.parametrize("name", ["a.pth", "a.st", "a.state"])
def test_written_and_read(state, tiny_config, tmp_path, name):
    """Bit for bit: float32 in a `.pth` and in our own, and these numbers fit float16."""
    write_state(tmp_path / name, state)
    read = read_state(tmp_path / name, tiny_config)
    np.testing.assert_array_equal(read.wkv, state.wkv)
    assert read.model == "rwkv6" and [file.name for file in tmp_path.iterdir()] == [name]


def test_what_other_programs_find_in_our_files(state, tmp_path, same):
    write_state(tmp_path / "a.pth", state)
    with open_weights(tmp_path / "a.pth") as tensors:
        same(tensors, time_state(state))
    write_state(tmp_path / "a.st", state)
    from safetensors.numpy import load_file

    turned = {name: matrix.transpose(0, 2, 1).astype("float16") for name, matrix in time_state(state).items()}
    same(load_file(tmp_path / "a.st"), turned)


def test_shift_vectors_are_not_lost_silently(state, tiny_config, tmp_path):
    """Of a text half read they are not zero, and without them it goes on differently."""
    halfway = RWKVState(state.wkv, state.shift + ml_dtypes.bfloat16(0.5), "rwkv6")
    with pytest.raises(ValueError, match=r"no place for the token-shift vectors.*drop_shift=True"):
        write_state(tmp_path / "a.pth", halfway)
    assert not list(tmp_path.iterdir())
    write_state(tmp_path / "a.pth", halfway, drop_shift=True)
    np.testing.assert_array_equal(read_state(tmp_path / "a.pth", tiny_config).wkv, state.wkv)
    write_state(tmp_path / "b.pth", halfway, "own")
    np.testing.assert_array_equal(read_state(tmp_path / "b.pth", tiny_config).shift, halfway.shift)


def test_several_texts_fit_our_own_files_only(state, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=r"one text. Received: 3"):
        write_state(tmp_path / "a.st", state.fork(3))
    write_state(tmp_path / "a.state", state.fork(3))
    assert read_state(tmp_path / "a.state", tiny_config).batch == 3


def test_numbers_too_large_for_float16(state, tmp_path):
    with pytest.raises(ValueError, match="too large for float16"):
        write_state(tmp_path / "a.st", RWKVState(state.wkv * 1e6, state.shift))
    assert not list(tmp_path.iterdir())


OTHERS = {
    "more layers": ({NAME.format(i): (2, 8, 8) for i in range(3)}, "it has 3 layers, the model 2"),
    "fewer layers": ({NAME.format(0): (2, 8, 8)}, "it has 1 layers, the model 2"),
    "a gap": ({NAME.format(0): (2, 8, 8), NAME.format(2): (2, 8, 8)}, r"no 'blocks\.1.*but 'blocks\.2"),
    "another head size": ({NAME.format(i): (4, 4, 4) for i in range(2)}, "it has 4 heads of 4, the model 2 heads of 8"),
    "no matrices": ({NAME.format(i): (2, 64) for i in range(2)}, r"it has shape \(2, 64\), the model 2 heads of 8"),
    "no state": ({"emb.weight": (3, 3)}, r"holds no state: no 'blocks\.0\.att\.time_state'. There is: 'emb\.weight'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_model(name, tiny_config, tmp_path):
    shapes, message = OTHERS[name]
    write_pth(tmp_path / "a.pth", {key: np.ones(shape, "float32") for key, shape in shapes.items()})
    with pytest.raises(WeightsError, match=message):
        read_state(tmp_path / "a.pth", tiny_config, "pth")


def test_whole_numbers_are_no_state(tiny_config, tmp_path):
    write_pth(tmp_path / "a.pth", {NAME.format(i): np.ones((2, 8, 8), "int64") for i in range(2)})
    with pytest.raises(WeightsError, match="int64, which no state is"):
        read_state(tmp_path / "a.pth", tiny_config)


def test_our_own_state_of_another_model(state, tiny_config, tmp_path):
    RWKVState(state.wkv, state.shift, "rwkv7").save(tmp_path / "a.state")
    with pytest.raises(WeightsError, match=r"state of rwkv7, with wkv \(2, 2, 8, 8\).*This rwkv6 wants"):
        read_state(tmp_path / "a.state", tiny_config)


def test_no_foreign_state_is_of_an_rwkv_4(state, tmp_path):
    from bert4keras_rwkv.config import RWKVConfig

    config = RWKVConfig("rwkv4", vocab_size=32, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    write_pth(tmp_path / "a.pth", time_state(state))
    with pytest.raises(WeightsError, match="no state of an RWKV-4"):
        read_state(tmp_path / "a.pth", config)
    begun = RWKVState.zeros(config)
    with pytest.raises(ValueError, match="states of an RWKV-4"):
        write_state(tmp_path / "b.pth", begun)
    write_state(tmp_path / "b.state", begun)
    np.testing.assert_array_equal(read_state(tmp_path / "b.state", config).wkv, begun.wkv)


@pytest.mark.parametrize(("layout", "message"), [("own", "Leave layout='own' out"), ("vk", "`layout` is one of")])
def test_a_layout_that_cannot_be(state, tiny_config, tmp_path, layout, message):
    write_pth(tmp_path / "a.pth", time_state(state))
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "a.pth", tiny_config, layout)


def test_our_own_file_says_its_layout_itself(state, tiny_config, tmp_path):
    state.save(tmp_path / "a.state")
    with pytest.raises(WeightsError, match="Leave layout='st' out"):
        read_state(tmp_path / "a.state", tiny_config, "st")


def test_sizes_without_reading(state, tmp_path, rng):
    sizes = {"kind": "state", "layers": 2, "heads": 2, "head_size": 8}
    with open_part(_written(tmp_path / "a.pth", state)) as tensors:
        assert state_sizes(tensors) == sizes | {"dtype": "float32"}
    with open_part(_written(tmp_path / "a.state", state.fork(3))) as tensors:
        assert state_sizes(tensors) == sizes | {"dtype": "float32", "model": "rwkv6", "texts": 3}
    write_pth(tmp_path / "model.pth", official_weights("6", rng) | time_state(state))
    with open_part(tmp_path / "model.pth") as tensors:
        assert state_sizes(tensors) is None


def _written(path, state):
    write_state(path, state)
    return path
