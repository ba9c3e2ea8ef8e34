"""`info` tells what a file holds without loading Keras, and errors are short."""

import json

import numpy as np
import pytest

from bert4keras_rwkv.cli import backend, main
from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import open_weights, write_safetensors
from bert4keras_rwkv.weights.formats.registry import format_named, formats
from bert4keras_rwkv.weights.tensors import as_tensors
from tests.official import official_weights

pytestmark = pytest.mark.backend_free


def test_for_programs(model, capsys):
    assert main(["info", str(model), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    with open_weights(model) as tensors:
        config = RWKVConfig.from_shapes(tensors.shapes)
        parameters = sum(array.size for array in tensors.values())
    assert {name: said[name] for name in config.to_dict()} == config.to_dict()
    assert (said["parameters"], said["dtypes"], said["stored_bytes"]) == (
        parameters,
        {"float32": parameters},
        4 * parameters,
    )
    assert said["state_bytes"] == 4 * (2 * 2 * 8 * 8 + 2 * 2 * 16)


def test_for_people(model, capsys, tmp_path):
    with open_weights(model) as tensors:
        write_safetensors(tmp_path / "b.safetensors", {**tensors, "ln_out.bias": np.zeros(16, np.float32)}, "bfloat16")
    assert main(["info", str(tmp_path / "b.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["format", ".safetensors", "of", "a", ".pth"]
    assert lines[2].split() == ["model", "rwkv6,", "2", "layers,", "vocabulary", "262"]
    assert ["dtype", "bfloat16"] in [line.split() for line in lines]


def test_what_would_go_where(model, capsys, monkeypatch):
    """What `RWKV.plan` gives, as a table or for programs."""
    monkeypatch.setattr(backend, "keep_compiled_programs", lambda: None)  # this process' JAX stays as it is
    assert main(["info", str(model), "--strategy", "cpu fp32 *1 -> cpu bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "'cpu fp32 *1 -> cpu bf16' for rwkv6, 2 blocks of 16"
    assert [line.split()[0] for line in lines[1:-1]] == ["block", "embedding", "0", "1", "head", "sum"]
    assert main(["info", str(model), "--strategy", "cuda fp16 *1+", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["streamed"] for row in said["rows"]] == [False, False, True, False]
    assert said["needed_bytes"]["cpu:0"] == said["rows"][2]["bytes"]


def test_a_strategy_is_for_models(tmp_path, tiny_config, capsys):
    RWKVState.zeros(tiny_config).save(tmp_path / "a.state")
    assert main(["info", str(tmp_path / "a.state"), "--strategy", "auto"]) == 2
    assert "--strategy is for whole models" in capsys.readouterr().err


def test_blocks_count_as_they_are_stored(tmp_path, rng, capsys):
    """Numbers in blocks are read as float32 and told as what they are: 34 bytes for 32 of them."""
    arrays = as_tensors(official_weights("6", rng, heads=1, head_size=32, ffn=32))
    format_named("gguf").write(tmp_path / "a", arrays, RWKVConfig.from_shapes(arrays.shapes), "q8_0")
    assert main(["info", str(tmp_path / "a"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    blocks = 2 * 32 * 32 + 2 * 8 * 32 * 32
    assert said["dtypes"] == {"float32": said["parameters"] - blocks, "q8_0": blocks}
    assert said["stored_bytes"] == 4 * (said["parameters"] - blocks) + blocks // 32 * 34
    assert said["kept"] == {"q8_0": "int8 in groups of 32, exact"}
    assert main(["info", str(tmp_path / "a")]) == 0
    assert "q8_0 as int8 in groups of 32, exact" in capsys.readouterr().out


@pytest.mark.parametrize("known", [known for known in formats() if known.written], ids=lambda known: known.name)
def test_every_format_is_named(tmp_path, rng, capsys, known):
    """What is written is told again, with the sizes of the model it was written from."""
    arrays = as_tensors(official_weights("6", rng, ids=16, ffn=32, ranks=(32, 64)))
    config = RWKVConfig.from_shapes(arrays.shapes)
    known.write(tmp_path / "a", arrays, config)
    assert main(["info", str(tmp_path / "a"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["format"] == known.title.replace("`", "")
    assert {name: said[name] for name in config.to_dict()} == config.to_dict()
    assert said["parameters"] == sum(array.size for array in arrays.values())


def test_shards_and_a_format_that_is_told(tmp_path, rng, capsys):
    official = official_weights("7", rng, ids=16, ranks=(16, 16, 16, 16))
    write_safetensors(tmp_path / "b.safetensors", official)
    places = dict.fromkeys(official, "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert main(["info", str(tmp_path)]) == 1
    assert "--from st" in capsys.readouterr().err
    assert main(["info", str(tmp_path), "--from", "safetensors"]) == 0
    assert "rwkv7, 2 layers, vocabulary 16" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 broken"])
def test_a_bad_file_is_one_line(tmp_path, capsys, content):
    (tmp_path / "bad.pth").write_bytes(content)
    assert main(["info", str(tmp_path / "bad.pth")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("bert4keras-rwkv info: '") and said.err.count("\n") == 1


def test_a_file_that_is_not_there(capsys):
    assert main(["info", "nowhere"]) == 1
    assert "No file or folder 'nowhere'. Models that ship" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["info"], ["generate"], ["convert", "a"], ["generate", "--prompt"]]
)
def test_wrong_usage_is_two(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("bert4keras-rwkv") and told.endswith(" --help says more.\n") and told.count("\n") == 1
