"""`quantize` writes a preset that is the quantised model."""

import json

import numpy as np
import pytest

from bert4keras_rwkv.cli import backend, main
from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.models import RWKV

pytestmark = pytest.mark.on("torch")
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
TEXTS = ["hello the end", "", "x the é the", "the hello"]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """This process' JAX stays as it is."""
    monkeypatch.setattr(backend, "keep_compiled_programs", lambda: None)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return tmp_path / "a.jsonl"


def logits(rwkv):
    return ops.convert_to_numpy(ops.stop_gradient(rwkv.forward(IDS)[0]))


def test_a_strategy_is_refused_by_name(model, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["quantize", str(model), str(tmp_path / "out"), "--strategy", "cpu fp32i8"])
    assert "unrecognized arguments: --strategy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "compensate"), [([], None), (["--calibrate"], False), (["--compensate", "--calibrate"], True)]
)
def test_the_preset_is_the_model(options, compensate, model, texts, tmp_path, capsys):
    """With the same texts, and without them."""
    given = [*options, str(texts)] if options else []
    assert main(["quantize", str(model), str(tmp_path / "out"), "--to", "int4", *given]) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out'}\n"
    rwkv = RWKV.from_preset(model)
    if compensate is None:
        rwkv.quantize("int4")
    else:
        rwkv.quantize("int4", calibrate=[text for text in TEXTS if text], compensate=compensate)
    np.testing.assert_array_equal(logits(RWKV.from_preset(tmp_path / "out")), logits(rwkv))


def test_what_cannot_be(model, texts, tmp_path, capsys):
    """Nothing is written, and a line says why."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}')
    for code, said, options in (
        (2, "--calibrate FILE", ["--compensate"]),
        (1, "no document", ["--calibrate", str(empty)]),
        (1, "There is no jsonl data set", ["--calibrate", str(tmp_path / "none.jsonl")]),
    ):
        assert main(["quantize", str(model), str(tmp_path / "out"), *options]) == code
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
