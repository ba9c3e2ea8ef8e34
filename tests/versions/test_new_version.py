"""A version is added by two files: `toy/` has them, and nothing else in the package knows of it."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv import layers, versions
from bert4keras_rwkv.cli import main
from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.models import RWKV
from tests.models import small, test_laws

pytestmark = pytest.mark.on("torch")
TOY = Path(__file__).parent / "toy"
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], "int32")
LAWS = [law for name, law in vars(test_laws).items() if name.startswith("test_")]


@pytest.fixture(scope="module")
def added():
    """While it lasts the version is there, called 'toy' in `small_model`."""
    with pytest.MonkeyPatch.context() as patch:
        for package in (versions, layers):
            patch.setattr(package, "__path__", [*package.__path__, str(TOY / package.__name__.rpartition(".")[2])])
        patch.setitem(small.VERSIONS, "toy", {"model": "rwkv9", "toys": 2})
        yield


@pytest.fixture(scope="module")
def rwkv(added):
    return small.small_model("toy")


@pytest.fixture(scope="module")
def warm(rwkv):
    return rwkv.forward(small.texts(np.random.default_rng(1), test_laws.B, test_laws.T))[1]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_its_state_is_exact(rwkv, warm, rng, law):
    """The laws, each with the first of its parameters."""
    values = {"rwkv": rwkv, "warm": warm, "rng": rng, "version": "toy"}
    for mark in getattr(law, "pytestmark", []):
        if mark.name == "parametrize":
            values[mark.args[0]] = next(iter(mark.args[1]))
    law(**{name: value for name, value in values.items() if name in inspect.signature(law).parameters})


def test_its_config_tells_it(added):
    config = RWKVConfig.from_dict(
        {"toys": 2, "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "head_size": 4}
    )
    assert (config.model, config.toys, config.intermediate_size, config.variant) == ("rwkv9", 2, 16, None)
    with pytest.raises(ValueError, match="An rwkv9 has no decomposer_size"):
        RWKVConfig(**config.to_dict(), decomposer_size=3)


def test_it_converts_and_info_shows_it(rwkv, tmp_path, capsys):
    """To a preset, to a `.pth`, to safetensors and back: the same logits, and its own keys in `info`."""
    want = ops.convert_to_numpy(rwkv.forward(IDS)[0])
    rwkv.save_to_preset(tmp_path / "preset")
    source = tmp_path / "preset"
    for name in ("a.pth", "b.safetensors", "again"):
        options = [] if "." in name else ["--to", "preset"]
        assert not main(["convert", str(source), str(tmp_path / name), *options])
        source = tmp_path / name
        np.testing.assert_array_equal(ops.convert_to_numpy(RWKV.from_preset(source).forward(IDS)[0]), want)
        capsys.readouterr()
        assert not main(["info", str(source)])
        shown = capsys.readouterr().out
        assert "rwkv9" in shown and "toys" in shown
