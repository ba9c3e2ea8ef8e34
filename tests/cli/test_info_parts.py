"""`info` tells a state and an adapter from a model."""

import json

import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import write_pth, write_safetensors
from bert4keras_rwkv.weights.adapters import OWN, save_lora
from bert4keras_rwkv.weights.states import write_state

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(("name", "bytes_each"), [("a.pth", 4), ("a.st", 2)])
def test_a_state(tmp_path, tiny_config, capsys, name, bytes_each):
    write_state(tmp_path / name, RWKVState.zeros(tiny_config))
    assert main(["info", str(tmp_path / name), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    sizes = {"kind": "state", "layers": 2, "heads": 2, "head_size": 8, "stored_bytes": bytes_each * 256}
    assert {key: said[key] for key in sizes} == sizes


def test_our_own_state(tmp_path, tiny_config, capsys):
    RWKVState.zeros(tiny_config, 3).save(tmp_path / "a.state")
    assert main(["info", str(tmp_path / "a.state")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model", "rwkv6"] in lines and ["texts", "3"] in lines and ["head", "size", "8"] in lines


def test_an_adapter(tmp_path, capsys):
    pair = np.ones((4, 16), "float32"), np.ones((16, 4), "float32")
    save_lora(tmp_path / "a.pth", {"blocks.0.att.key": pair, "blocks.1.att.key": pair})
    assert main(["info", str(tmp_path / "a.pth")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["adapter", "LoRA", "or", "PiSSA"] in lines and ["ranks", "4"] in lines and ["matrices", "2"] in lines


def test_our_own_adapter(tmp_path, capsys):
    """What `RWKV.save_adapter` wrote is no model."""
    tensors = {
        "blocks/0/time_mix/key/lora_a": (16, 4),
        "blocks/0/time_mix/key/lora_b": (4, 16),
        "start/wkv": (1, 2, 3, 16),
        "start/shift": (1, 4, 1, 16),
    }
    said = {"config": {"model": "rwkv4", "num_hidden_layers": 2}, "shift": True}
    arrays = {name: np.ones(shape, "float32") for name, shape in tensors.items()}
    write_safetensors(tmp_path / "a.safetensors", arrays, metadata={"format": OWN, "adapter": json.dumps(said)})
    assert main(["info", str(tmp_path / "a.safetensors")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["adapter", "LoRA", "and", "state,", "with", "last", "inputs"] in lines
    assert ["ranks", "4"] in lines and ["matrices", "1"] in lines and ["model", "rwkv4"] in lines


def test_a_model_with_a_state_in_it_is_a_model(model, capsys, tmp_path):
    from bert4keras_rwkv.weights import open_weights

    with open_weights(model) as tensors:
        state = {f"blocks.{i}.att.time_state": np.ones((2, 8, 8), "float32") for i in range(2)}
        write_pth(tmp_path / "merged.pth", dict(tensors) | state)
    assert main(["info", str(tmp_path / "merged.pth")]) == 0
    assert "rwkv6, 2 layers, vocabulary 262" in capsys.readouterr().out
