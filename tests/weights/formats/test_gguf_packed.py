"""Blocks of a GGUF file as packed matrices, against the library's own formulas."""

import gguf
import numpy as np
import pytest

from bert4keras_rwkv.packing import unpacked
from bert4keras_rwkv.weights import WeightsError, open_weights
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from bert4keras_rwkv.weights.packed import as_packed, title
from tests.official import official_weights
from tests.weights.formats.gguf_files import SIZES, config_for, save, stored
from tests.weights.formats.test_gguf import random_blocks

pytestmark = pytest.mark.backend_free

EXACT = {"Q8_0", "Q5_0", "Q4_0", "Q4_1", "IQ4_NL"}


def head_of(path):
    """The packed form of the head, its numbers, and how far they are from the file's."""
    with open_weights(path) as tensors:
        entry = as_packed(tensors).entry("head.weight")
        arrays = entry.packed.read()
        assert {name: (x.shape, x.dtype.name) for name, x in arrays.items()} == entry.packed.scheme.tensors(
            *entry.shape
        )
        return entry.packed, unpacked(arrays, entry.packed.scheme, entry.shape[1]), entry.packed.difference


def usual_blocks(rng, kind, width):
    """Blocks of a matrix as it may be trained: of random ones, those whose scales are of usual size."""
    raw = random_blocks(rng, kind, 64, width)
    numbers = gguf.quants.dequantize(raw, kind)
    wanted = (np.abs(numbers).max(axis=1) < 2**14) & (np.abs(numbers).max(axis=1) > 0)
    return raw[wanted], numbers[wanted]


def test_every_type(tmp_path, rng):
    """Exact for some; the others as near as int8 in groups of 32 is, of which the report says how much."""
    arrays = official_weights("6", rng, heads=1, head_size=256, layers=1, ids=20)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays))
    tensors = stored(tmp_path / "a.gguf")
    kinds = [kind for kind in gguf.GGMLQuantizationType if hasattr(gguf.quants, kind.name)]
    seen = 0
    for kind in kinds:
        if kind.name in ("F16", "BF16"):
            continue
        raw, numbers = usual_blocks(rng, kind, 256)
        if len(raw) < 2:
            continue
        rows = np.resize(np.arange(len(raw)), 20)
        save(tmp_path / "b.gguf", "rwkv6", tensors | {"output.weight": (raw[rows], kind)}, head_size=256)
        packed, got, difference = head_of(tmp_path / "b.gguf")
        seen += 1
        if kind.name in EXACT:
            assert difference.exact and kind.name in str(difference)
            np.testing.assert_array_equal(got, numbers[rows], err_msg=kind.name)
            continue
        apart = np.abs(got - numbers[rows])
        assert difference.largest == pytest.approx(apart.max() / np.abs(numbers[rows]).max(), rel=1e-4)
        assert difference.rms == pytest.approx(np.sqrt(np.sum(apart**2.0) / np.sum(numbers[rows] ** 2.0)), rel=1e-4)
        groups = apart.reshape(20, -1, 32).max(-1), np.abs(numbers[rows]).reshape(20, -1, 32).max(-1)
        bar = 2**-10 * 2 if kind.name == "Q4_K" else 0.5 / 127 + 2**-11
        assert np.all(groups[0] <= bar * groups[1] + 2.0**-18), kind.name
        assert title(packed.scheme) in str(difference)
    assert seen >= 15


def test_what_llama_cpp_halves(tmp_path, rng):
    """The converter of RWKV-6 divides some matrices by a power of two; it is undone in the scales."""
    arrays = official_weights("6", rng, **SIZES)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "q4_0")
    save(tmp_path / "b.gguf", "rwkv6", stored(tmp_path / "a.gguf"), rescale_every_n_layers=1)
    with open_weights(tmp_path / "b.gguf") as tensors:
        kept = as_packed(tensors)
        for name in ("blocks.2.att.output.weight", "blocks.1.ffn.value.weight"):
            packed = kept.entry(name).packed
            numbers = unpacked(packed.read(), packed.scheme, tensors.shapes[name][1])
            np.testing.assert_array_equal(numbers, tensors[name])


def test_a_scale_that_is_no_number(tmp_path, rng):
    arrays = official_weights("6", rng, **SIZES)
    write_gguf(tmp_path / "a.gguf", arrays, config_for(arrays), "q8_0")
    tensors = stored(tmp_path / "a.gguf")
    raw, _ = tensors["output.weight"]
    raw[3, :2] = np.array([np.inf], "float16").view(np.uint8)
    save(tmp_path / "b.gguf", "rwkv6", tensors)
    with pytest.raises(WeightsError, match=r"output\.weight' has a scale that is no number"):
        head_of(tmp_path / "b.gguf")
