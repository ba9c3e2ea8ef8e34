"""`convert --lora` writes the merged weights."""

import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.weights import open_weights, write_pth
from bert4keras_rwkv.weights.adapters import save_lora

pytestmark = pytest.mark.backend_free
NAME = "blocks.1.ffn.value"


@pytest.fixture
def pair(rng):
    """A [r, in] and B [out, r] for `NAME` of the model, [16, 24]."""
    return rng.standard_normal((4, 24)).astype("float32") / 8, rng.standard_normal((16, 4)).astype("float32") / 8


def matrix(path):
    with open_weights(path) as tensors:
        return tensors[f"{NAME}.weight"]


def test_a_lora_is_merged_and_the_result_checked(model, pair, tmp_path, capsys):
    """`--check` compares with the merged weights. 1e-6: one float32 product in another order."""
    A, B = pair
    save_lora(tmp_path / "lora.pth", {NAME: pair})
    target = tmp_path / "merged.safetensors"
    options = ["--lora", str(tmp_path / "lora.pth"), "--alpha", "8", "--check"]
    assert main(["convert", str(model), str(target), *options]) == 0
    assert "Checked as float32" in capsys.readouterr().out
    want = matrix(model) + 2.0 * B.astype("float64") @ A
    np.testing.assert_allclose(matrix(target), want, atol=1e-6 * np.abs(want).max())


def test_a_pissa_needs_its_base(model, pair, tmp_path):
    """With the factors it began with it is the model itself, to the rounding of two float32 products."""
    save_lora(tmp_path / "lora.pth", {NAME: pair})
    write_pth(tmp_path / "init.pth", {f"model.{NAME}.init_lora_A": pair[0], f"model.{NAME}.init_lora_B": pair[1]})
    options = ["--lora", str(tmp_path / "lora.pth"), "--lora-base", str(tmp_path / "init.pth")]
    assert main(["convert", str(model), str(tmp_path / "same.pth"), *options]) == 0
    np.testing.assert_allclose(matrix(tmp_path / "same.pth"), matrix(model), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--lora-base", "x.pth"], 2, "`--lora-base` belongs to the PiSSA"),
        (["--alpha", "5"], 2, "`--alpha` belongs to the LoRA"),
        (["--lora", "MODEL"], 1, "is no LoRA, PiSSA, DiSHA, Bone or Bat"),
        (["--lora", "nowhere.pth"], 1, "nowhere.pth"),
    ],
)
def test_nothing_is_written_when_it_cannot_be(model, pair, tmp_path, capsys, options, code, message):
    save_lora(tmp_path / "lora.pth", {NAME: pair})
    places = {"MODEL": str(model), "LORA": str(tmp_path / "lora.pth")}
    target = tmp_path / "merged.pth"
    assert main(["convert", str(model), str(target), *(places.get(option, option) for option in options)]) == code
    assert message in capsys.readouterr().err and not target.exists()
