"""Files of rwkv.cpp are read back to official tensors: of every version, with and without blocks, damaged or not."""

import struct
import tempfile
import time
from contextlib import suppress

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.packing import unpacked
from bert4keras_rwkv.weights import WeightsError, open_weights
from bert4keras_rwkv.weights.formats.rwkv_cpp import open_rwkv_cpp
from bert4keras_rwkv.weights.packed import OFFERED, as_packed
from tests.official import VERSIONS, official_weights

pytestmark = pytest.mark.backend_free

NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 7, "Q5_1": 8, "Q8_0": 9}


def converted(version, name, array):
    """What rwkv.cpp's converter stores under an official name, as its source says (apart from RWKV-7's mixes)."""
    last = name.split(".")[-1]
    exponential = np.exp(array.astype(np.float64)).astype(np.float32)
    squeezed = array.squeeze() if ".time_" in name else array
    if version == "4":
        return -exponential if last == "time_decay" else squeezed
    if version.startswith("5"):
        gated = version in ("5.1", "5.2")
        if last == "time_decay":
            decay = np.exp(-np.exp(squeezed.astype(np.float64))).astype(np.float32)
            return decay[..., None] if gated else decay.reshape(-1, 1, 1)
        if last == "time_first":
            return exponential.reshape(-1, 1, 1)
        return squeezed[..., None] if last == "time_faaaa" else squeezed
    if version == "6":
        if last in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):
            return squeezed.T
        if last == "time_decay":
            return squeezed.reshape(-1, 8, 1)
        squeezed = squeezed.swapaxes(1, 2) if last == "time_maa_w2" else squeezed
        return squeezed[..., None] if last == "time_faaaa" else squeezed
    return array.T if last in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2") else array


def file_of(version, arrays, kind=None, magic=b"fmgg", number=101):
    """The bytes of a file. kind: the type of matrices whose rows are whole blocks, but embedding and head."""
    layers = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    content = struct.pack("<4s5i", magic, number, *arrays["emb.weight"].shape, layers, 0)
    for name, array in arrays.items():
        if version == "7" and ".att.x_" in name:
            if not name.endswith("x_r"):
                continue
            array = np.concatenate([arrays[name[:-1] + letter] for letter in "rwkvag"])
            name = f"{name}wkvag"
        array = np.ascontiguousarray(converted(version, name, array))
        blocks = kind and array.ndim == 2 and array.shape[1] % 32 == 0 and name not in ("emb.weight", "head.weight")
        stored = kind if blocks else "F16" if array.dtype == np.float16 else "F32"
        data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind]) if blocks else array
        content += struct.pack("<3i", array.ndim, len(name), NUMBERS[stored])
        content += struct.pack(f"<{array.ndim}i", *array.shape[::-1]) + name.encode() + data.tobytes()
    return content


def opened(content):
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(content)
        file.flush()
        with open_weights(file.name) as tensors:
            assert tensors.shapes == {name: array.shape for name, array in tensors.items()}
            return dict(tensors), tensors


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(rng, version, heads):
    """Bit for bit, but for those that come through an exponential: rounded once to float32 in it, so to 2^-24 of what
    goes into the logarithm; 1e-5 for decays between 0.2 and 0.8.
    """
    arrays = official_weights(version, rng, heads=heads)
    found, _ = opened(file_of(version, arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        logarithm = name.endswith(("time_decay", "time_first")) and version not in ("6", "7")
        logarithm &= not (version == "4" and name.endswith("time_first"))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 if logarithm else 0, err_msg=name)
        assert found[name].dtype == np.float32 and found[name].shape == array.shape
    shapes = {name: array.shape for name, array in arrays.items()}
    assert RWKVConfig.from_shapes({name: array.shape for name, array in found.items()}) == RWKVConfig.from_shapes(
        shapes
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks(rng, kind):
    """Matrices are what `gguf` makes of them; embedding and head are never in blocks, nor rows that are no blocks."""
    arrays = official_weights("4", rng, heads=2, head_size=32, ffn=96)
    found, tensors = opened(file_of("4", arrays, kind))
    number = gguf.GGMLQuantizationType[kind]
    for name in ("blocks.0.att.key.weight", "blocks.1.ffn.value.weight", "head.weight"):
        blocks = name != "head.weight"
        expected = (
            gguf.quants.dequantize(gguf.quants.quantize(arrays[name], number), number) if blocks else arrays[name]
        )
        np.testing.assert_array_equal(found[name], expected)
        assert tensors.metadata["types"][name] == (kind if blocks else "F32")
        assert (name in tensors.metadata[OFFERED]) == blocks


def test_blocks_are_kept(rng, tmp_path):
    """As they are in `quantization='keep'`: the same numbers, in the bytes of the file."""
    arrays = official_weights("4", rng, heads=2, head_size=32, ffn=96)
    (tmp_path / "a.bin").write_bytes(file_of("4", arrays, "Q4_1"))
    with open_weights(tmp_path / "a.bin") as tensors:
        for entry in as_packed(tensors).entries().values():
            if entry.packed is not None:
                numbers = unpacked(entry.packed.read(), entry.packed.scheme, entry.shape[1])
                np.testing.assert_array_equal(numbers, entry.read())


def test_float16(rng):
    arrays = official_weights("4", rng)
    half = {name: array.astype("float16") if name.endswith("y.weight") else array for name, array in arrays.items()}
    found, _ = opened(file_of("4", half))
    assert found["blocks.0.att.key.weight"].dtype == np.float16 and found["ln_out.weight"].dtype == np.float32
    np.testing.assert_array_equal(found["blocks.0.att.key.weight"], half["blocks.0.att.key.weight"])


def test_decays_beyond_float32_stay_finite(rng):
    """A decay so slow or fast that its factor was rounded to 1 or 0 comes back as one that is rounded so again."""
    arrays = official_weights("5.2", rng)
    name = "blocks.0.att.time_decay"
    arrays[name][0, :4] = [-30, -18, 5, 50]
    found, _ = opened(file_of("5.2", arrays))
    assert np.isfinite(found[name]).all()
    factors = np.exp(-np.exp(found[name][0, :4].astype(np.float64)))
    np.testing.assert_array_equal(factors.astype(np.float32), np.float32([1, 1, 0, 0]))


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        ("4", np.nan),
        ("4", 3),
        ("5.2", np.nan),
        ("5.2", 3),
        ("5.2", -3),
        ("5.0 time_first", np.nan),
        ("5.0 time_first", -3),
    ],
)
def test_what_is_no_exponential_is_damage(rng, version, bad):
    """A decay of RWKV-4 is below 0, one of RWKV-5 a factor from 0 to 1, a bonus above 0."""
    arrays = official_weights(version, rng)
    content = file_of(version, arrays)
    name = "blocks.1.att.time_first" if "first" in version else "blocks.1.att.time_decay"
    stored = np.ascontiguousarray(converted(version, name, arrays[name]))
    damaged = stored.copy()
    damaged.reshape(-1)[0] = bad
    with pytest.raises(WeightsError, match="lies from"):
        opened(content.replace(stored.tobytes(), damaged.tobytes()))


SMALL = official_weights("7", np.random.default_rng(1), heads=1, head_size=32, layers=1, ffn=32)
WHOLE = file_of("7", SMALL, "Q8_0")
NAME = 24 + 12 + 8  # where the first tensor's name begins
BAD = {
    "only the magic": (b"fmgg", "asked for"),
    "version 102": (file_of("7", SMALL, number=102), "version 102"),
    "blocks of version 100": (file_of("7", SMALL, "Q8_0", number=100), "Q8_0 of version 100"),
    "cut in a header": (WHOLE[:30], "asked for"),
    "cut in data": (WHOLE[:1000], "'emb.weight' should end at byte"),
    "cut between tensors": (WHOLE[: NAME + 10 + 4 * 32 * 32], "should have 32 ids of width 32 and 1 layers"),
    "negative dimensions": (WHOLE[:24] + struct.pack("<3i", -1, 4, 0) + WHOLE[36:], "-1 dimensions"),
    "many dimensions": (WHOLE[:24] + struct.pack("<3i", 1 << 30, 4, 0) + WHOLE[36:], "dimensions"),
    "a negative size": (WHOLE[:36] + struct.pack("<2i", 32, -5) + WHOLE[NAME:], "shape"),
    "absurd sizes": (WHOLE[:36] + struct.pack("<2i", 1 << 30, 1 << 30) + WHOLE[NAME:], "should end at byte"),
    "an absurd name": (WHOLE[:24] + struct.pack("<3i", 2, 1 << 30, 0) + WHOLE[36:], "a name of 1073741824 bytes"),
    "a name that is no text": (WHOLE[:NAME] + b"\xff" + WHOLE[NAME + 1 :], "not those of an RWKV"),
    "a type that was dropped": (WHOLE[:24] + struct.pack("<3i", 2, 10, 5) + WHOLE[36:], "Q4_2 of version 101"),
    "an unknown type": (WHOLE[:24] + struct.pack("<3i", 2, 10, 77) + WHOLE[36:], "unknown type 77"),
    "no emb.weight": (WHOLE.replace(b"emb.weight", b"emb.WEIGHT"), "should have"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(tmp_path / "bad.bin")
    assert "bad.bin" in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_is_one_kind_of_error(data):
    """Whatever bytes change and wherever the file ends: all is read, or a `WeightsError` comes, within a second."""
    content = bytearray(WHOLE)
    near = st.sampled_from([*range(24, NAME + 12), WHOLE.index(b"x_rwkvag") - 30, WHOLE.index(b"att.r_k") - 26])
    for place, byte in data.draw(
        st.lists(st.tuples(near | st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = byte
    began = time.process_time()
    with tempfile.NamedTemporaryFile() as file:
        file.write(content[: data.draw(st.integers(0, len(WHOLE)) | st.just(len(WHOLE)))])
        file.flush()
        with suppress(WeightsError), open_rwkv_cpp(file.name) as tensors:
            list(tensors.items())
    assert time.process_time() - began < 1


@pytest.mark.oracle
@pytest.mark.parametrize("version", ["6", "7"])
def test_files_of_their_converter(oracles, version):
    """The very tensors of the `.pth` that it was made from."""
    with (
        open_weights(oracles / f"formats/rwkvcpp/reference_{version}-FP32.bin") as found,
        open_weights(oracles / f"reference/reference_{version}.pth") as expected,
    ):
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
