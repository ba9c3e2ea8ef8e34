"""GGUF files of others are read exactly: what llama.cpp's converters wrote, old and new, in every type."""

import gguf
import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights import WeightsError, open_weights
from bert4keras_rwkv.weights.binary_file import BinaryFile
from bert4keras_rwkv.weights.formats.llama_cpp.blocks import stored_tensor
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from tests.official import official_weights
from tests.weights.formats.gguf_files import SIZES, config_for, contents, finish, library, rounded, save, stored

pytestmark = pytest.mark.backend_free


def test_every_type_that_the_library_knows(tmp_path, rng):
    """A matrix of random blocks of each type is what the library makes of it, whole and in rows."""
    arrays = official_weights("6", rng, heads=1, head_size=256, layers=1, ids=20)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    tensors = stored(tmp_path / "a.gguf")
    kinds = [kind for kind in gguf.GGMLQuantizationType if hasattr(gguf.quants, kind.name)]
    assert len(kinds) > 20
    for kind in kinds:
        raw = random_blocks(rng, kind, rows=20, width=256)
        save(tmp_path / "b.gguf", "rwkv6", tensors | {"output.weight": (raw, kind)}, head_size=256)
        with open_weights(tmp_path / "b.gguf") as found:
            expected = gguf.quants.dequantize(raw, kind)
            np.testing.assert_array_equal(found["head.weight"].astype(np.float32), expected, err_msg=kind.name)
            rows = found.entry("head.weight").rows(3, 7)
            np.testing.assert_array_equal(rows.astype(np.float32), expected[3:7], err_msg=kind.name)
            assert found.metadata["types"]["head.weight"] == kind.name


def random_blocks(rng, kind, rows, width):
    """Bytes of blocks whose numbers are all finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, width // block * size)).astype(np.uint8)
    for _ in range(100):
        with np.errstate(all="ignore"):
            bad = ~np.isfinite(gguf.quants.dequantize(raw, kind).astype(np.float32)).all(axis=1)
        if not bad.any():
            return raw
        raw[bad] = rng.integers(0, 256, (bad.sum(), raw.shape[1]))
    return raw % 60  # small exponents


def test_what_it_says_of_its_types(tmp_path, rng):
    """Which tensors are in blocks, and how many bytes all take as they lie there."""
    arrays = official_weights("6", rng, **SIZES)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "q4_1")
    with open_weights(tmp_path / "a.gguf") as tensors:
        said = tensors.metadata
    matrices = [name for name, array in arrays.items() if name.endswith(".weight") and array.ndim == 2]
    assert said["blocks"] == dict.fromkeys(matrices, "q4_1")
    assert said["stored_bytes"] == sum(tensor.n_bytes for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rescaling_is_undone(tmp_path, rng, same, dtype):
    """llama.cpp's converter divides by powers of two, so exactly. In float16 nothing here is below 2^-11, an eighth of
    which still has all its bits.
    """
    arrays = official_weights("6", rng, **SIZES | {"layers": 7})
    arrays = {name: np.where(abs(array) < 2**-11, 0, array).astype(dtype) for name, array in arrays.items()}
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    tensors = stored(tmp_path / "a.gguf")
    for i in range(7):
        for name in (f"blk.{i}.time_mix_output.weight", f"blk.{i}.channel_mix_value.weight"):
            tensors[name] = (tensors[name][0] / np.asarray(2 ** (i // 2), dtype), tensors[name][1])
    save(tmp_path / "b.gguf", "rwkv6", tensors, rescale_every_n_layers=2)
    a, b = library(tmp_path / "a.gguf")[name][1], library(tmp_path / "b.gguf")[name][1]
    np.testing.assert_array_equal(8 * b, a)
    same(contents(tmp_path / "b.gguf"), contents(tmp_path / "a.gguf"))


def test_rescaling_is_undone_in_blocks(tmp_path, rng):
    """In whole and in rows: the numbers of the blocks, times a power of two."""
    arrays = official_weights("6", rng, **SIZES)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "q8_0")
    save(tmp_path / "b.gguf", "rwkv6", stored(tmp_path / "a.gguf"), rescale_every_n_layers=1)
    name = "blocks.2.ffn.value.weight"
    with open_weights(tmp_path / "a.gguf") as a, open_weights(tmp_path / "b.gguf") as b:
        np.testing.assert_array_equal(b[name], 4 * a[name])
        np.testing.assert_array_equal(b.entry(name).rows(3, 5), 4 * a[name][3:5])


def test_old_files_with_a_tensor_for_each_mix(tmp_path, rng, same):
    """Before they were fused, in shapes [C, 1, 1] of GGML."""
    arrays = official_weights("6", rng, **SIZES)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    tensors = {}
    for name, (array, kind) in stored(tmp_path / "a.gguf").items():
        parts = zip("wkvrg", array, strict=True) if "fused" in name else [("", array)]
        tensors |= {name.replace("fused", letter): (part, kind) for letter, part in parts}
    save(tmp_path / "b.gguf", "rwkv6", tensors)
    same(contents(tmp_path / "b.gguf"), arrays)


@pytest.mark.parametrize("version", ["6", "7"])
def test_one_head_and_ranks_of_one(tmp_path, rng, same, version):
    """Also where trailing sizes of 1 were dropped, as llama.cpp's own programs do when they write."""
    arrays = official_weights(version, rng, heads=1, head_size=8, ids=9, ranks=(1, 1, 1, 1))
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    same(contents(tmp_path / "a.gguf"), arrays)
    tensors = {}
    for name, (array, kind) in stored(tmp_path / "a.gguf").items():
        kept = next((axis for axis, size in enumerate(array.shape) if size > 1), 0)
        tensors[name] = (array.reshape(array.shape[kept:]), kind)
    assert any(array.ndim == 1 and "1.weight" in name for name, (array, _) in tensors.items())
    save(tmp_path / "b.gguf", f"rwkv{version}", tensors, head_size=8)
    same(contents(tmp_path / "b.gguf"), arrays)


def test_missing_and_extra_tensors_are_named(tmp_path, rng):
    arrays = official_weights("6", rng)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    tensors = stored(tmp_path / "a.gguf")
    del tensors["blk.1.time_mix_key.weight"]
    tensors["rope_freqs.weight"] = tensors.pop("output_norm.bias")
    save(tmp_path / "b.gguf", "rwkv6", tensors, head_size=8)
    with pytest.raises(WeightsError) as caught:
        open_weights(tmp_path / "b.gguf")
    assert str(caught.value).splitlines()[1:] == [
        "  nothing is named 'blk.1.time_mix_key.weight'",
        "  nothing is named 'output_norm.bias'",
        "  no rule for 'rope_freqs.weight'",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_size": 7}, "do not fit each other"),
        ({"head_size": 0}, "do not fit each other"),
        ({"rescale_every_n_layers": -1}, "every -1 of 2 layers"),
        ({"split.count": 3}, "one of 3 parts of a GGUF file. Join them"),
    ],
)
def test_keys_that_cannot_be(tmp_path, rng, change, message):
    arrays = official_weights("6", rng)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "rwkv6")
    for name, value in {"head_size": 8, **change}.items():
        key = {"head_size": "rwkv6.wkv.head_size", "split.count": name}.get(name, f"rwkv6.{name}")
        writer.add_int32(key, value)
    for name, (array, kind) in stored(tmp_path / "a.gguf").items():
        writer.add_tensor(name, array, raw_dtype=kind)
    finish(writer)
    with pytest.raises(WeightsError, match=message):
        open_weights(tmp_path / "b.gguf")


def test_another_epsilon_is_said(tmp_path, rng, caplog):
    """The shapes of a model do not say it, and nothing else of a GGUF file reaches a config."""
    arrays = official_weights("6", rng)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    save(tmp_path / "b.gguf", "rwkv6", stored(tmp_path / "a.gguf"), head_size=8, layer_norm_eps=1e-3)
    contents(tmp_path / "a.gguf")
    assert not caplog.messages
    contents(tmp_path / "b.gguf")
    assert len(caplog.messages) == 1 and "a layer_norm_epsilon of 0.001" in caplog.messages[0]


def test_a_scale_that_is_no_number_is_damage(tmp_path, rng):
    arrays = official_weights("6", rng, **SIZES)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "q8_0")
    offset = next(t.data_offset for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "output.weight")
    with open(tmp_path / "a.gguf", "r+b") as file:
        file.seek(offset + 34)
        file.write(np.float16(np.nan).tobytes())
    with (
        open_weights(tmp_path / "a.gguf") as tensors,
        pytest.raises(WeightsError, match=r"'output\.weight' has a scale"),
    ):
        tensors["head.weight"]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "version"), [("rwkv6-f32", "6"), ("rwkv7-f16", "7"), ("rwkv6-q8_0", "6"), ("rwkv7-q8_0", "7")]
)
def test_files_of_llama_cpps_converter(oracles, name, version):
    """Bit-identical to the `.pth` they were made from, as far as their type allows."""
    with (
        open_weights(oracles / f"formats/{name}.gguf") as found,
        open_weights(oracles / f"reference/reference_{version}.pth") as expected,
    ):
        assert found.shapes == {tensor: expected.shapes[tensor] for tensor in found} and set(found) == set(expected)
        for tensor, kind in found.metadata["types"].items():
            want = expected[tensor].astype(np.float32)
            if kind == "F16":
                want = want.astype(np.float16)
            elif kind != "F32":
                want = rounded(tensor, want, gguf.GGMLQuantizationType[kind])
            np.testing.assert_array_equal(found[tensor], want, err_msg=tensor)
        vocabulary = RWKV_TOKENIZER()
        assert found.metadata["vocabulary"] == {i: vocabulary.token_bytes(i) for i in range(1, 512)}


@pytest.mark.oracle
def test_recorded_blocks(oracles, tmp_path):
    """23 types of blocks, and bfloat16: the values that `gguf` gave for these bytes."""
    blocks = np.load(oracles / "quant/blocks.npz")
    kinds = [name.removesuffix("_raw") for name in blocks.files if name.endswith("_raw")]
    assert len(kinds) == 24
    for kind in kinds:
        (tmp_path / "blocks").write_bytes(b"before" + blocks[f"{kind}_raw"].tobytes())
        reader, values = BinaryFile(tmp_path / "blocks"), blocks[f"{kind}_values"]
        tensor = stored_tensor(reader, "a", 6, values.shape, gguf.GGMLQuantizationType[kind])
        assert tensor.shape == values.shape and tensor.dtype == (ml_dtypes.bfloat16 if kind == "BF16" else np.float32)
        np.testing.assert_array_equal(tensor.read().astype(np.float32), values, err_msg=kind)
        np.testing.assert_array_equal(tensor.rows(2, 5).astype(np.float32), values[2:5], err_msg=kind)
        reader.close()
