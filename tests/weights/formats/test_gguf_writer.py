"""What we write as GGUF, the library reads: names, shapes, types, values, and the keys that llama.cpp asks for."""

import logging

import gguf
import numpy as np
import pytest

from bert4keras_rwkv.weights import WeightsError, open_weights
from bert4keras_rwkv.weights.formats.llama_cpp.write import BLOCKS, write_gguf
from tests.official import official_weights
from tests.weights.formats.gguf_files import SIZES, config_for, contents, keys, library, rounded, small_tokenizer

pytestmark = pytest.mark.backend_free


@pytest.fixture(params=["6", "7"])
def version(request):
    return request.param


@pytest.fixture
def arrays(version, rng):
    return official_weights(version, rng, **SIZES)


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
def test_there_and_back_keeps_bits_and_order(tmp_path, arrays, same, source):
    """Each tensor in its own dtype; what llama.cpp wants in float32 comes back in float32, with the same value."""
    stored = {name: array.astype(source) for name, array in arrays.items()}
    write_gguf(tmp_path / "a.gguf", stored, config_for(arrays))
    found = contents(tmp_path / "a.gguf")
    wide = {name: array for name, array in stored.items() if array.ndim == 2 and found[name].dtype == array.dtype}
    assert {"emb.weight", "head.weight", "blocks.1.att.key.weight", "blocks.2.ffn.value.weight"} <= set(wide)
    same(found, {name: array if name in wide else array.astype(np.float32) for name, array in stored.items()})


@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_are_the_librarys(tmp_path, arrays, dtype):
    """A quantised matrix is what the library makes of it, and its rest what it was."""
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), dtype)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    with open_weights(tmp_path / "a.gguf") as tensors:
        types = tensors.metadata["types"]
        assert {"emb.weight", "head.weight", "blocks.1.att.output.weight"} <= {
            n for n in types if types[n] == kind.name
        }
        for name, array in tensors.items():
            expected = arrays[name]
            if types[name] == kind.name:
                expected = rounded(name, expected, kind)
            elif types[name] == "F16":
                expected = expected.astype(np.float16)
            np.testing.assert_array_equal(array, expected, err_msg=name)
            assert array.dtype == tensors.dtypes[name] == ("float16" if types[name] == "F16" else "float32")


def test_rows_that_are_no_blocks_are_float16(tmp_path, rng):
    arrays = official_weights("6", rng, head_size=8)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "q8_0")
    with open_weights(tmp_path / "a.gguf") as tensors:
        assert set(tensors.metadata["types"].values()) == {"F16", "F32"}
        np.testing.assert_array_equal(tensors["head.weight"], arrays["head.weight"].astype(np.float16))


def test_the_library_reads_what_we_write(tmp_path, arrays, version):
    """Names, shapes, types and values of every tensor, and every key."""
    config = config_for(arrays)
    write_gguf(tmp_path / "a.gguf", arrays, config, "q8_0", small_tokenizer())
    found = library(tmp_path / "a.gguf")
    base = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[f"RWKV{version}"]]}
    known = {f"{name.format(bid=i)}.{part}" for name in base for i in range(3) for part in ("weight", "bias")}
    assert set(found) <= known
    kind, numbers = found["blk.1.channel_mix_value.weight"]
    assert kind == "Q8_0" and numbers.shape == (64, 96)
    np.testing.assert_allclose(numbers, arrays["blocks.1.ffn.value.weight"], atol=0.05)
    kind, fused = found["blk.2.time_mix_lerp_fused.weight"]
    names = [f"time_maa_{m}" for m in "wkvrg"] if version == "6" else [f"x_{m}" for m in "rwkvag"]
    assert kind == "F32" and fused.shape == (len(names), 1, 1, 64)
    np.testing.assert_array_equal(fused[:, 0], np.concatenate([arrays[f"blocks.2.att.{name}"] for name in names]))
    fields = keys(tmp_path / "a.gguf")
    arch = f"rwkv{version}"
    assert fields["general.architecture"] == arch and fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    told = {
        "embedding_length": 64, "block_count": 3, "feed_forward_length": 96, "wkv.head_size": 32,
        "attention.head_count": 0, "context_length": 1048576,
    }  # fmt: skip
    ranks = {
        "6": {"time_mix_extra_dim": 3, "time_decay_extra_dim": 5, "rescale_every_n_layers": 0},
        "7": {f"attention.{name}_lora_rank": rank for name, rank in zip(
            ("decay", "iclr", "value_residual_mix", "gate"), (3, 5, 4, 2), strict=True)},
    }  # fmt: skip
    assert {key: fields[f"{arch}.{key}"] for key in told | ranks[version]} == told | ranks[version]
    assert fields[f"{arch}.attention.layer_norm_epsilon"] == np.float32(1e-5)


def test_layer_0_of_rwkv7(tmp_path, rng, same):
    """llama.cpp wants a value residual there: a copy of other tensors, which we never take for the model's."""
    arrays = official_weights("7", rng, **SIZES)
    config = config_for(arrays)
    unused = {f"blocks.0.att.v{n}": arrays[f"blocks.1.att.v{n}"] for n in range(3)}
    write_gguf(tmp_path / "a.gguf", arrays | unused, config)
    found = library(tmp_path / "a.gguf")
    for n in range(3):
        np.testing.assert_array_equal(found[f"blk.0.time_mix_v{n}.weight"][1], found[f"blk.0.time_mix_a{n}.weight"][1])
    same(contents(tmp_path / "a.gguf"), arrays)


@pytest.mark.parametrize("version", ["4", "5.0", "5.2"])
def test_versions_that_llama_cpp_does_not_know(tmp_path, rng, version):
    arrays = official_weights(version, rng)
    with pytest.raises(WeightsError, match=f"RWKV-6 and RWKV-7. Received: rwkv{version[0]}"):
        write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said(tmp_path, rng, caplog):
    arrays = official_weights("6", rng)
    config = config_for(arrays)
    with pytest.raises(WeightsError, match=r"float32, float16, bfloat16, q8_0, .* Received: 'q6_k'"):
        write_gguf(tmp_path / "a.gguf", arrays, config, "q6_k")
    large = arrays | {"head.weight": arrays["head.weight"] * np.float32(1e6)}
    with pytest.raises(WeightsError, match=r"'output\.weight' has numbers too large for float16"):
        write_gguf(tmp_path / "a.gguf", large, config, "float16")
    with pytest.raises(WeightsError, match=r"nothing in the file fills 'output_norm\.bias' \(ln_out\.bias\)"):
        write_gguf(tmp_path / "a.gguf", {n: a for n, a in arrays.items() if n != "ln_out.bias"}, config)
    assert not list(tmp_path.iterdir()) and not caplog.messages
    tuned = arrays | {f"blocks.{i}.att.time_state": np.ones((2, 8, 8), np.float32) for i in range(2)}
    with caplog.at_level(logging.WARNING):
        write_gguf(tmp_path / "a.gguf", tuned, config)
    assert len(caplog.messages) == 1 and "tuned initial state" in caplog.messages[0]


def test_progress(tmp_path, arrays):
    seen = []
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), progress=lambda *counts: seen.append(counts))
    total = len(gguf.GGUFReader(tmp_path / "a.gguf").tensors)
    assert seen == [(done, total) for done in range(1, total + 1)]
