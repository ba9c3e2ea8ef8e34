"""A merged tensor is the formula of its kind of adapter, written down here again; what does not fit is refused."""

import json

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth, write_safetensors
from bert4keras_rwkv.weights.adapters import OWN, adapter_sizes, own_adapter, read_adapter, save_lora
from bert4keras_rwkv.weights.merging import merged
from bert4keras_rwkv.weights.part_files import open_part
from bert4keras_rwkv.weights.tensors import as_tensors
from tests.official import official_weights

pytestmark = pytest.mark.backend_free

MATRIX = "blocks.1.ffn.value"  # [out, in] = [16, 24] below: two sizes that cannot be taken for each other
SIZES = {"att.receptance": (16, 16), "att.key": (16, 16), "ffn.key": (24, 16), "ffn.value": (16, 24)}


@pytest.fixture
def model(rng):
    """Official name -> array of an RWKV-7 with hidden size 16 and channel mix 24."""
    return official_weights("7", rng)


def written(path, arrays, dtype=None):
    (write_safetensors if path.suffix == ".st" else write_pth)(path, arrays, dtype)
    return read_adapter(path)


def factors(rng, r=4, names=("lora_A", "lora_B")):
    """'P.lora_A' [r, in] and 'P.lora_B' [out, r] for every matrix of `SIZES`."""
    arrays = {}
    for i in range(2):
        for name, (out, inside) in SIZES.items():
            arrays[f"blocks.{i}.{name}.{names[0]}"] = rng.standard_normal((r, inside)).astype("float32")
            arrays[f"blocks.{i}.{name}.{names[1]}"] = rng.standard_normal((out, r)).astype("float32")
    return arrays


def others_are_the_same(got, model, changed):
    assert list(got) == list(model)
    for name in set(model) - set(changed):
        np.testing.assert_array_equal(got[name], model[name])


def test_lora(model, rng, tmp_path):
    """W + alpha / r * B A. 1e-6: one float32 product in another order."""
    arrays = factors(rng)
    got = merged(as_tensors(model), written(tmp_path / "a.pth", arrays), alpha=8)
    A, B = (arrays[f"{MATRIX}.lora_{letter}"].astype("float64") for letter in "AB")
    want = model[f"{MATRIX}.weight"] + 2 * B @ A
    np.testing.assert_allclose(got[f"{MATRIX}.weight"], want, atol=1e-6 * np.abs(want).max())
    others_are_the_same(got, model, [f"blocks.{i}.{name}.weight" for i in range(2) for name in SIZES])


def test_web_rwkv_lora_is_the_same_lora(model, rng, tmp_path):
    """What web-rwkv's converter makes of a file: A transposed, float16, names in its own way."""
    arrays = {name: array.astype("float16") for name, array in factors(rng).items()}
    theirs = {name.replace("lora_B", "lora.1"): array for name, array in arrays.items() if name.endswith("B")}
    theirs |= {name.replace("lora_A", "lora.0"): array.T for name, array in arrays.items() if name.endswith("A")}
    want = merged(as_tensors(model), written(tmp_path / "a.pth", arrays))
    got = merged(as_tensors(model), written(tmp_path / "a.st", theirs))
    for name in model:
        np.testing.assert_array_equal(got[name], want[name])


def test_web_rwkvs_names_of_whole_tensors(rng, tmp_path):
    """`time_mix_` is RWKV-6's `time_maa_` there, and its factors are transposed."""
    model = official_weights("6", rng)
    new = {name: model[f"blocks.0.att.{name}"] + 1 for name in ("time_maa_x", "time_maa_w1", "time_faaaa")}
    theirs = {
        "blocks.0.att.key.lora.0": np.ones((16, 2)),
        "blocks.0.att.key.lora.1": np.zeros((16, 2)),
        "blocks.0.att.time_mix_x": new["time_maa_x"],
        "blocks.0.att.time_mix_w1": new["time_maa_w1"].T,
        "blocks.0.att.time_first": new["time_faaaa"],
    }
    got = merged(as_tensors(model), written(tmp_path / "a.st", theirs))
    for name, array in new.items():
        np.testing.assert_array_equal(got[f"blocks.0.att.{name}"], array)


def test_whole_tensors_replace(model, rng, tmp_path):
    arrays = factors(rng) | {name: model[name] + 1 for name in ("ln_out.bias", "blocks.1.att.x_r")}
    got = merged(as_tensors(model), written(tmp_path / "a.pth", arrays))
    for name in ("ln_out.bias", "blocks.1.att.x_r"):
        np.testing.assert_array_equal(got[name], model[name] + 1)
        assert got[name].dtype == np.float32


def test_pissa(model, rng, tmp_path):
    """W - B0 A0 + B A: with the factors it began with, nothing changes; alpha has no part in it."""
    began, arrays = factors(rng, names=("init_lora_A", "init_lora_B")), factors(rng)
    base = written(tmp_path / "init.pth", {f"model.{name}": array for name, array in began.items()})
    got = merged(as_tensors(model), written(tmp_path / "a.pth", arrays), alpha=99, base=base)
    wide = {name: array.astype("float64") for name, array in (began | arrays).items()}
    want = model[f"{MATRIX}.weight"] + wide[f"{MATRIX}.lora_B"] @ wide[f"{MATRIX}.lora_A"]
    want -= wide[f"{MATRIX}.init_lora_B"] @ wide[f"{MATRIX}.init_lora_A"]
    np.testing.assert_allclose(got[f"{MATRIX}.weight"], want, atol=1e-6 * np.abs(want).max())
    untrained = {name.replace("init_", ""): array for name, array in began.items()}
    same = merged(as_tensors(model), written(tmp_path / "b.pth", untrained), base=base)
    np.testing.assert_allclose(same[f"{MATRIX}.weight"], model[f"{MATRIX}.weight"], atol=3e-6)


@pytest.mark.parametrize("r", [1, 4, 7, 24, 30])
def test_bone(model, rng, tmp_path, r):
    """W'[o, j] = W[o, j] + D[j mod r, o], also where r does not divide the 24 columns, or is more than they are."""
    D = rng.standard_normal((r, 16)).astype("float32")
    got = merged(as_tensors(model), written(tmp_path / "a.pth", {f"{MATRIX}.disha": D}))
    W = model[f"{MATRIX}.weight"]
    want = np.array([[W[o, j] + D[j % r, o] for j in range(24)] for o in range(16)])
    np.testing.assert_array_equal(got[f"{MATRIX}.weight"], want)
    others_are_the_same(got, model, [f"{MATRIX}.weight"])


@pytest.mark.parametrize("r", [1, 4, 8])
def test_bat(model, rng, tmp_path, r):
    """Every block [r, r] of W, in column b, gets itself times D_b, and D_b. 1e-6: one float32 product."""
    D = rng.standard_normal((24 // r, r, r)).astype("float32")
    got = merged(as_tensors(model), written(tmp_path / "a.pth", {f"{MATRIX}.disha": D}))
    want = model[f"{MATRIX}.weight"].astype("float64")
    for a in range(16 // r):
        for b in range(24 // r):
            block = want[a * r : a * r + r, b * r : b * r + r]
            block += block @ D[b] + D[b]
    np.testing.assert_allclose(got[f"{MATRIX}.weight"], want, atol=1e-6 * np.abs(want).max())


def test_half_precision_is_rounded_once(model, rng, tmp_path):
    """Computed in float32, whatever the model's dtype is: the bfloat16 nearest to the float32 answer."""
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in model.items()}
    adapter = written(tmp_path / "a.pth", factors(rng))
    exact = merged(as_tensors({name: array.astype("float32") for name, array in half.items()}), adapter)
    got = merged(as_tensors(half), adapter)
    assert got.dtypes == {name: array.dtype for name, array in half.items()}
    np.testing.assert_array_equal(got[f"{MATRIX}.weight"], exact[f"{MATRIX}.weight"].astype(ml_dtypes.bfloat16))


def test_nothing_is_read_before_it_is_asked_for(model, rng, tmp_path):
    write_pth(tmp_path / "model.pth", model)
    with open_weights(tmp_path / "model.pth") as tensors:
        got = merged(tensors, written(tmp_path / "a.pth", factors(rng)))
        assert got.shapes == tensors.shapes and got.dtypes == tensors.dtypes
    with pytest.raises(ValueError, match="closed file"):
        got[f"{MATRIX}.weight"]


def test_a_tuned_state_beside_a_lora_is_left_to_load_state(model, rng, tmp_path):
    arrays = factors(rng) | {"blocks.0.att.time_state": np.ones((2, 8, 8), "float32")}
    assert list(merged(as_tensors(model), written(tmp_path / "a.pth", arrays))) == list(model)


def test_what_a_model_does_not_use_may_be_in_the_file(model, rng, tmp_path):
    """Layer 0 of an RWKV-7 may have a value residual, which nobody uses."""
    adapter = written(tmp_path / "a.pth", factors(rng) | {"blocks.0.att.v0": np.ones((1, 1, 16))})
    assert list(merged(as_tensors(model), adapter, unused={"blocks.0.att.v0"})) == list(model)
    with pytest.raises(WeightsError, match=r"the model has no 'blocks\.0\.att\.v0'"):
        merged(as_tensors(model), adapter)


def test_every_misfit_is_in_one_message(model, tmp_path):
    arrays = {
        "blocks.0.att.key.lora_A": np.ones((4, 8)),
        "blocks.0.att.key.lora_B": np.ones((16, 4)),
        "blocks.9.att.key.lora_A": np.ones((4, 16)),
        "blocks.9.att.key.lora_B": np.ones((16, 4)),
        "ln_out.weight": np.ones(5),
        "ln_new.weight": np.ones(5),
    }
    with pytest.raises(WeightsError, match="4 weights do not fit") as told:
        merged(as_tensors(model), written(tmp_path / "a.pth", arrays))
    for line in (
        "the model has no 'ln_new.weight'",
        "'ln_out.weight' is (16,), the file has (5,)",
        "'blocks.0.att.key.weight' is (16, 16), the file has LoRA or PiSSA (4, 8) and (16, 4)",
        "the model has no 'blocks.9.att.key.weight'",
    ):
        assert line in str(told.value)


BROKEN = {
    "half a pair": ({"blocks.0.att.key.lora_A": (4, 16)}, "Expected lora_A and lora_B"),
    "three dimensions": ({"a.lora_A": (4, 4, 4), "a.lora_B": (4, 4)}, "Expected lora_A and lora_B"),
    "one dimension": ({"a.disha": (4,)}, "disha with 2 or 3 dimensions"),
    "two kinds": ({"a.disha": (4, 4), "b.disha": (4, 4, 4)}, r"mixes Bat and DiSHA \(Bone\)"),
    "a model": ({"emb.weight": (4, 4), "a.bone": (3, 3)}, r"is no LoRA.* There is: 'emb\.weight', 'a\.bone'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_adapter(name, tmp_path):
    shapes, message = BROKEN[name]
    with pytest.raises(WeightsError, match=message):
        written(tmp_path / "a.pth", {key: np.ones(shape) for key, shape in shapes.items()})


def test_a_bat_that_does_not_tile_the_matrix(model, tmp_path):
    """Rank 3 divides the 24 columns and not the 16 rows."""
    with pytest.raises(WeightsError, match=r"is \(16, 24\), the file has Bat \(8, 3, 3\)"):
        merged(as_tensors(model), written(tmp_path / "a.pth", {f"{MATRIX}.disha": np.ones((8, 3, 3))}))


def test_files_of_a_pissa_that_do_not_go_together(model, rng, tmp_path):
    began, lora = factors(rng, names=("init_lora_A", "init_lora_B")), factors(rng)
    initial, trained = written(tmp_path / "init.pth", began), written(tmp_path / "a.pth", lora)
    with pytest.raises(WeightsError, match="Give the trained file, and this one as `base`"):
        merged(as_tensors(model), initial)
    with pytest.raises(WeightsError, match=r"`base` is for a PiSSA.*with LoRA or PiSSA, for"):
        merged(as_tensors(model), trained, base=trained)
    del began[f"{MATRIX}.init_lora_A"], began[f"{MATRIX}.init_lora_B"]
    smaller = written(tmp_path / "smaller.pth", began)
    with pytest.raises(WeightsError, match=f"'{MATRIX}' is only in one of the two files"):
        merged(as_tensors(model), trained, base=smaller)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), "32", True, None])
def test_an_alpha_that_cannot_be(model, rng, tmp_path, alpha):
    with pytest.raises(ValueError, match="`alpha` is a positive number"):
        merged(as_tensors(model), written(tmp_path / "a.pth", factors(rng)), alpha=alpha)


@pytest.mark.parametrize(("name", "bar"), [("a.pth", 1e-6), ("a.st", 1e-3)])
def test_a_lora_that_we_write(model, rng, tmp_path, name, bar):
    """With `alpha` told, merging with the usual 32 is merging with that alpha. 1e-3: `.st` is float16."""
    A, B = rng.standard_normal((4, 24)).astype("float32"), rng.standard_normal((16, 4)).astype("float32")
    save_lora(tmp_path / name, {MATRIX: (A, B)}, alpha=8)
    got = merged(as_tensors(model), read_adapter(tmp_path / name))
    want = model[f"{MATRIX}.weight"] + 2.0 * B.astype("float64") @ A
    np.testing.assert_allclose(got[f"{MATRIX}.weight"], want, atol=bar * np.abs(want).max())


def test_names_of_the_loras_that_we_write(tmp_path):
    A, B = np.ones((4, 24), "float32"), np.full((16, 4), 2, "float32")
    save_lora(tmp_path / "a.pth", {MATRIX: (A, B)})
    save_lora(tmp_path / "a.st", {MATRIX: (A, B)})
    with open_part(tmp_path / "a.pth") as peft, open_part(tmp_path / "a.st") as web:
        assert peft.shapes == {f"{MATRIX}.lora_A": (4, 24), f"{MATRIX}.lora_B": (16, 4)}
        assert web.shapes == {f"{MATRIX}.lora.0": (24, 4), f"{MATRIX}.lora.1": (16, 4)}
        assert (peft[f"{MATRIX}.lora_B"] == 2).all() and str(web.dtypes[f"{MATRIX}.lora.0"]) == "float16"
    with pytest.raises(ValueError, match=r"A pair is A \[r, in\] and B \[out, r\]"):
        save_lora(tmp_path / "b.pth", {MATRIX: (B, A)})


def test_sizes_without_reading(model, rng, tmp_path):
    write_pth(tmp_path / "a.pth", factors(rng) | {"ln_out.bias": np.ones(16)})
    with open_part(tmp_path / "a.pth") as tensors:
        assert adapter_sizes(tensors, "a.pth") == {
            "kind": "adapter",
            "adapter": "LoRA or PiSSA",
            "layers": 2,
            "ranks": [4],
            "matrices": 8,
            "whole_tensors": 1,
            "dtype": "float32",
        }
    with open_part(_model(tmp_path / "model.pth", model)) as tensors:
        assert adapter_sizes(tensors, "model.pth") is None


def _model(path, model):
    write_pth(path, model)
    return path


@pytest.fixture
def answers(oracles):
    return np.load(oracles / "lora/lora_7_answers.npz")


@pytest.fixture
def reference(oracles):
    with open_weights(oracles / "reference/reference_7.pth") as tensors:
        yield tensors


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "kind", "bar"),
    [("lora/lora_7_r8_alpha32.pth", "lora", 1e-6), ("formats/st/lora_7.st", "lora", 1e-3), ("pissa", "pissa", 2**-8)],
)
def test_merged_weights_of_rwkv_peft(oracles, answers, reference, name, kind, bar):
    """1e-6 of the largest: float32 products in another order. 1e-3 for the factors in float16. 2^-8 where RWKV-PEFT
    rounds W - B0 A0 to bfloat16, and we do not.
    """
    base = None
    if kind == "pissa":
        name, base = "lora/pissa_7_r8.pth", read_adapter(oracles / "lora/pissa_7_r8_init.pth")
    got = merged(reference, read_adapter(oracles / name), 32, base)
    want = answers[f"{kind}_weight_{MATRIX}"]
    assert np.abs(got[f"{MATRIX}.weight"] - want).max() < bar * np.abs(want).max()
    assert np.abs(reference[f"{MATRIX}.weight"] - want).max() > 0.01


@pytest.mark.oracle
def test_web_rwkvs_converter_only_rounded(oracles, reference, tmp_path):
    """Its file of the same LoRA merges, bit for bit, as the original does in float16."""
    with open_part(oracles / "lora/lora_7_r8_alpha32.pth") as tensors:
        rounded = written(tmp_path / "a.pth", tensors, "float16")
    want, got = merged(reference, rounded), merged(reference, read_adapter(oracles / "formats/st/lora_7.st"))
    for name in rounded.changes:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.oracle
def test_the_formulas_of_bone_and_bat_are_those_of_rwkv_peft(answers, reference, tmp_path):
    """Only merged weights were recorded. D is read off their first rows, and the merged rest agrees: 1e-5, for D
    carries the rounding of a float32 difference.
    """
    weight = reference[f"{MATRIX}.weight"]  # [128, 512]; ranks 24 and 32
    bone = (answers[f"bone_weight_{MATRIX}"] - weight)[:, :24].T
    W, B = (x.reshape(4, 32, 16, 32).swapaxes(1, 2) for x in (weight, answers[f"bat_weight_{MATRIX}"] - weight))
    bat = np.linalg.solve(W[0].astype("float64") + np.eye(32), B[0].astype("float64")).astype("float32")
    for kind, D in (("bone", bone), ("bat", bat)):
        got = merged(reference, written(tmp_path / f"{kind}.pth", {f"{MATRIX}.disha": np.ascontiguousarray(D)}))
        want = answers[f"{kind}_weight_{MATRIX}"]
        assert np.abs(got[f"{MATRIX}.weight"] - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    "said, left_out",
    [
        ("{", ""),
        ("[1, 2]", ""),
        (json.dumps({"config": [], "shift": True}), ""),
        (json.dumps({"config": {"model": ["rwkv6"], "num_hidden_layers": 2}, "shift": True}), ""),
        (json.dumps({"config": {"model": "rwkv6", "num_hidden_layers": 2}, "shift": "yes"}), ""),
        (json.dumps({"config": {"model": "rwkv6", "num_hidden_layers": 2}, "shift": True, "alpha": [1]}), ""),
        (json.dumps({"config": {"model": "rwkv6", "num_hidden_layers": 2}, "shift": True}), "head/lora_b"),
        (json.dumps({"config": {"model": "rwkv6", "num_hidden_layers": 2}, "shift": True}), "start/shift"),
    ],
)
def test_an_own_adapter_that_is_none(tmp_path, said, left_out):
    """Loading and `info` read it by one function, which refuses what `save_adapter` does not write."""
    shapes = {"head/lora_a": (4, 2), "head/lora_b": (2, 4), "start/wkv": (1, 2, 1, 4, 4), "start/shift": (1, 4, 1, 4)}
    arrays = {name: np.ones(shape, "float32") for name, shape in shapes.items() if name != left_out}
    write_safetensors(tmp_path / "a.safetensors", arrays, metadata={"format": OWN, "adapter": said})
    with open_part(tmp_path / "a.safetensors") as tensors, pytest.raises(WeightsError, match=r"a\.safetensors"):
        own_adapter(tensors, tmp_path / "a.safetensors")
