"""A state can be cut, joined, stored and read again without a change."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState
from tests.models.small import SIZES, VERSIONS


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


def test_equal_states_are_equal_files(state, tmp_path):
    """In every process: names in the header have an order."""
    state.save(tmp_path / "a.state")
    data = (tmp_path / "a.state").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode()
    order = ["__metadata__", "format", "layout", "model", "version", "shift", "wkv"]
    assert sorted(order, key=lambda name: header.index(f'"{name}":')) == order


def test_bytes_are_those_of_the_file(state, tmp_path):
    """With more texts in the header, of any signs, they are a file too."""
    state.save(tmp_path / "a.state")
    assert state.to_bytes() == (tmp_path / "a.state").read_bytes()
    for dtype in ("float32", "float16", ml_dtypes.bfloat16):
        narrow = dataclasses.replace(state, shift=state.shift.astype(dtype))
        data = narrow.to_bytes(text='a "é" \u4e2d\u2028\x7f\x01\n\\', format="never")
        back, metadata = RWKVState.from_bytes(data)
        same(back, narrow)
        assert back.shift.dtype == dtype and metadata["text"] == 'a "é" \u4e2d\u2028\x7f\x01\n\\'
        (tmp_path / "a.state").write_bytes(data)
        same(RWKVState.load(tmp_path / "a.state"), narrow)


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


@pytest.fixture(params=["rwkv6", "rwkv4"])
def three(request, rng):
    """Three states of one model; RWKV-4's with maxima far apart, at which e^maximum alone overflows."""
    shape = (2, 2, 2, 8, 8) if request.param == "rwkv6" else (2, 2, 3, 16)
    states = []
    for _ in range(3):
        wkv = rng.standard_normal(shape).astype("float32")
        if request.param == "rwkv4":
            wkv[:, :, 1], wkv[:, :, 2] = np.abs(wkv[:, :, 1]), rng.uniform(799, 802, shape[:2] + shape[3:])
        states.append(RWKVState(wkv, rng.standard_normal((2, 4, 1, 16)).astype("float32"), request.param))
    return states


def sums(state):
    """What is averaged, in float64: matrices, or RWKV-4's numerator and denominator, times e^-800."""
    wkv = state.wkv.astype("float64")
    return wkv if wkv.ndim == 5 else wkv[:, :, :2] * np.exp(wkv[:, :, 2:] - 800)


def test_an_average_is_that_of_the_sums(three):
    """3e-5 for RWKV-4: a float32 maximum of 800 has steps of 6e-5, and stands in an exponent."""
    weights = (1.0, 2.0, 5.0)
    got = RWKVState.average(three, weights)
    for part in (sums, lambda state: state.shift):
        want = sum(w / 8 * part(state) for w, state in zip(weights, three, strict=True))
        np.testing.assert_allclose(part(got), want, rtol=3e-5, atol=1e-6)


def test_averages_that_are_no_average(three):
    """Of one state, of a state and others that do not count, and the ends of a way: the state itself, bit for bit."""
    a, b, c = three
    same(RWKVState.average([a]), a)
    same(RWKVState.average([b, a, c], [0, 3, 0]), a)
    same(a.interpolate(b, 0), a)
    same(a.interpolate(b, 1), b)
    np.testing.assert_allclose(RWKVState.average([a, a, a]).wkv, a.wkv, rtol=2e-7)


def test_the_order_of_an_average_does_not_matter(three):
    """2e-7: the last bit of a float32."""
    a, b, c = three
    one, other = RWKVState.average([a, b, c], [1, 2, 3]), RWKVState.average([c, a, b], [3, 1, 2])
    np.testing.assert_allclose(one.wkv, other.wkv, rtol=2e-7, atol=1e-9)
    np.testing.assert_allclose(a.interpolate(b, 0.25).wkv, b.interpolate(a, 0.75).wkv, rtol=2e-7, atol=1e-9)


def test_a_text_not_begun_counts_as_nothing():
    """RWKV-4's zero state has a maximum of -1e30; half of another's sums are left."""
    config = RWKVConfig.from_dict({**SIZES, **VERSIONS["4"]})
    zero = RWKVState.zeros(config)
    wkv = np.ones_like(zero.wkv)
    half = zero.interpolate(RWKVState(wkv, zero.shift, "rwkv4"), 0.5)
    np.testing.assert_array_equal(half.wkv[:, :, :2], 0.5)
    np.testing.assert_array_equal(half.wkv[:, :, 2], 1.0)
    same(RWKVState.average([zero, zero]), zero)


@pytest.mark.parametrize(
    "misuse, message",
    [
        (lambda a: RWKVState.average([]), "at least one state"),
        (lambda a: RWKVState.average([a, a], [1]), "a weight for each"),
        (lambda a: RWKVState.average([a, a], [-1, 2]), "none negative"),
        (lambda a: RWKVState.average([a, a[0]]), "batches of"),
        (lambda a: a.interpolate(a, 1.5), "in \\[0, 1\\]"),
        (lambda a: a.interpolate(dataclasses.replace(a, model="rwkv7"), 0.5), "one model"),
    ],
)
def test_an_average_that_cannot_be(state, misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse(state)


def test_it_shows_its_sizes_not_its_numbers(tiny_config):
    shown = repr(RWKVState.zeros(tiny_config, 3))
    assert "rwkv6" in shown and "3 rows" in shown and len(shown) < 120
