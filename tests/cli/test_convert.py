"""`convert` loses nothing, whichever way round, and leaves nothing half done."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.cli import convert, main
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights import open_weights, write_pth
from bert4keras_rwkv.weights.checkpoint import open_checkpoint
from bert4keras_rwkv.weights.formats.registry import format_named, formats
from tests.official import official_weights

pytestmark = pytest.mark.backend_free


def contents(path):
    with open_weights(path) as tensors:
        return dict(tensors)


def assert_same(found, expected):
    """The same arrays in the same order."""
    assert list(found) == list(expected)
    assert_equal(found, expected)


def assert_equal(found, expected):
    """The same arrays in any order."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_once_around(model, tmp_path, capsys):
    """.pth, preset, .safetensors, .pth: the same tensors in the same order, the vocabulary beside them."""
    path = model
    for target in ("preset", "a.safetensors", "b.pth"):
        assert main(["convert", str(path), str(tmp_path / target)]) == 0
        path = tmp_path / target
    assert_same(contents(path), contents(model))
    assert sorted(os.listdir(tmp_path / "preset")) == ["config.json", "model.weights.h5", "vocab.txt"]
    assert json.loads((tmp_path / "preset/config.json").read_text())["dtype"] == "float32"
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.pth", "model", "preset"]


def test_the_name_of_a_template_goes_along(model, tmp_path, capsys):
    """Through every format that can hold it; the others say that they cannot."""
    assert main(["convert", str(model), str(tmp_path / "first")]) == 0
    config = tmp_path / "first/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "template": "g1"}))
    path = tmp_path / "first"
    for options in (["a.safetensors"], ["b.gguf"], ["c"], ["d", "--to", "fla"], ["e.st"], ["f"]):
        assert main(["convert", str(path), str(tmp_path / options[0]), *options[1:]]) == 0
        path = tmp_path / options[0]
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.origin == (path.stem, "g1")
    assert "its template" not in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "g.pth")]) == 0
    assert "g.pth cannot say that its template is 'g1'" in capsys.readouterr().err
    with open_checkpoint(tmp_path / "g.pth") as checkpoint:
        assert checkpoint.origin == ("g", None)


def test_a_dtype(model, tmp_path):
    assert main(["convert", str(model), str(tmp_path / "preset"), "--dtype", "bfloat16"]) == 0
    found = contents(tmp_path / "preset")
    assert_same(found, {name: array.astype(ml_dtypes.bfloat16) for name, array in contents(model).items()})


def test_the_order_of_released_files(model, tmp_path):
    """Some programs take the tensors of a `.pth` by position; a file sorted by name comes out in the right order."""
    arrays = contents(model)
    write_pth(tmp_path / "sorted.pth", dict(sorted(arrays.items())))
    assert main(["convert", str(tmp_path / "sorted.pth"), str(tmp_path / "b.pth")]) == 0
    assert_same(contents(tmp_path / "b.pth"), arrays)


def test_a_preset_that_exists_keeps_its_other_files(model, tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset/README.md").write_text("mine")
    assert main(["convert", str(model), str(tmp_path / "preset")]) == 0
    assert (tmp_path / "preset/README.md").read_text() == "mine"
    assert_same(contents(tmp_path / "preset"), contents(model))


@pytest.mark.parametrize(
    "target, options, message",
    [
        ("a.weights.h5", (), r"NAME\.pth.*or a folder for a preset; or --to preset, hf, fla"),
        ("a.bin", (), "Cannot write"),
        ("a", ("--to", "bert4keras3"), "No format 'bert4keras3' can be written"),
        ("a.pth", ("--from", "no"), "No format 'no' can be read"),
        ("a.pth", ("--from", "st"), "stored as pth, which holds"),
        ("a.pth", ("--dtype", "q8_0"), r"pth \(official `\.pth`\) has the dtypes float32, .*Received: --dtype q8_0"),
        ("a.gguf", ("--dtype", "q4_k"), "has the dtypes float32, .*q8_0, q5_1.*llama-quantize.*Received: --dtype q4_k"),
        ("model", ("--to", "pth"), "is a folder, and a file is to be written"),
        ("model/tiny.pth", ("--to", "hf"), "is no folder. Give another name"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(model, tmp_path, capsys, target, options, message):
    assert main(["convert", str(model), str(tmp_path / target), *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["model"]


# Sizes that Hugging Face's classes can have.
SIZES = {"5.2": {"ffn": 32}, "6": {"ffn": 32, "ranks": (32, 64)}}


@pytest.mark.parametrize("version, least", [("4", 5), ("5.2", 5), ("6", 7), ("7", 6)])
def test_around_every_format(tmp_path, rng, version, least):
    """From one to the next that holds this version: read again with every bit, in the order of a released file."""
    official = official_weights(version, rng, ids=16, **SIZES.get(version, {}))
    path = tmp_path / "a.pth"
    write_pth(path, official)
    held = {version, version.partition(".")[0]}
    names = [known.name for known in formats() if held & set(known.written)]
    assert len(names) >= least
    for i, to in enumerate([*names, "pth"]):
        target = tmp_path / f"{i}{format_named(to).suffix or ''}"
        assert main(["convert", str(path), str(target), "--to", to, "--dtype", "float32"]) == 0
        path = target
    assert_same(contents(path), official)


def test_a_folder_does_not_get_a_second_model(model, tmp_path, capsys):
    """It would mean one of them; the same format again replaces the first."""
    for _ in range(2):
        assert main(["convert", str(model), str(tmp_path / "preset")]) == 0
    assert main(["convert", str(model), str(tmp_path / "preset"), "--to", "fla"]) == 1
    assert "holds other weights, 'model.weights.h5'. Give another name" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "preset")) == ["config.json", "model.weights.h5", "vocab.txt"]


def test_hugging_face_and_fla(tmp_path, rng, capsys):
    """Folders with a config, a vocabulary under their name for it, and what ends a text."""
    write_pth(tmp_path / "a.pth", official_weights("6", rng, ids=16, ranks=(32, 64), ffn=32))
    for to in ("hf", "fla"):
        folder = tmp_path / to
        assert main(["convert", str(tmp_path / "a.pth"), str(folder), "--to", to]) == 0
        assert_equal(contents(folder), contents(tmp_path / "a.pth"))
        assert {"config.json", "generation_config.json", "model.safetensors"} <= set(os.listdir(folder))
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0].split()[:3] for line in said] == [["No", "tokenizer", "was"]] * 2


def test_the_vocabulary_goes_along(model, tmp_path, capsys):
    """Past others that lie in the folder already."""
    for folder in ("fla", "preset"):
        (tmp_path / folder).mkdir()
        RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)}).save(
            tmp_path / folder / "rwkv_vocab_old.txt"
        )
    assert main(["convert", str(model), str(tmp_path / "fla"), "--to", "fla"]) == 0
    assert main(["convert", str(tmp_path / "fla"), str(tmp_path / "preset")]) == 0
    texts = [
        model.parent / "rwkv_vocab_tiny.txt",
        tmp_path / "fla/rwkv_vocab_v20230424.txt",
        tmp_path / "preset/vocab.txt",
    ]
    ids = [RWKV_TOKENIZER(path).encode("hello the 中é") for path in texts]
    assert ids[0] == ids[1] == ids[2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("to", ["preset", "fla"])
def test_a_vocabulary_that_lies_in_dst_stays_and_is_named(model, tmp_path, capsys, to):
    """SRC has none to put in its place: which one the folder is read with is said."""
    (tmp_path / "dst").mkdir()
    write_pth(tmp_path / "a.pth", contents(model))
    before = (model.parent / "rwkv_vocab_tiny.txt").read_bytes()
    (tmp_path / "dst/vocab.txt").write_bytes(before)
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "dst"), "--to", to]) == 0
    assert (tmp_path / "dst/vocab.txt").read_bytes() == before
    said = capsys.readouterr().err
    assert "is read with the vocab.txt that lies there, which must be this model's" in said and said.count("\n") == 1


def test_a_vocabulary_that_does_not_go_along_is_missed(model, tmp_path, capsys):
    """A single file holds none, and is read with one that lies beside it; a folder names its own."""
    target = tmp_path / "a.pth"
    assert main(["convert", str(model), str(target)]) == 0
    told = f"{target} holds no vocabulary. Put that of {model} beside it, or convert to a folder.\n"
    assert capsys.readouterr().err == told
    assert main(["convert", str(model), str(model.parent / "b.pth")]) == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "dst").mkdir()
    lines = (model.parent / "rwkv_vocab_tiny.txt").read_text().splitlines(keepends=True)
    (tmp_path / "dst/rwkv_vocab_old.txt").write_text("".join(lines[:-1]))
    assert main(["convert", str(model), str(tmp_path / "dst/a.pth")]) == 0
    assert "is read with the rwkv_vocab_old.txt that lies there, which is not the voc" in capsys.readouterr().err
    assert main(["convert", str(model), str(tmp_path / "folder")]) == 0
    shutil.copy(tmp_path / "dst/rwkv_vocab_old.txt", tmp_path / "folder")
    assert main(["convert", str(model), str(tmp_path / "folder")]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_refused_was_not_written(model, tmp_path, capsys):
    """So it is not called written before."""
    write_pth(tmp_path / "a.pth", contents(model))
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "dst"), "--to", "hf"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "The rwkv6 class of Hugging Face fixes some sizes" in said


def test_st_is_float16_by_itself(model, tmp_path):
    assert main(["convert", str(model), str(tmp_path / "a.st")]) == 0
    assert_equal(contents(tmp_path / "a.st"), {n: a.astype(np.float16) for n, a in contents(model).items()})


def test_squares_need_a_name(tmp_path, rng, capsys):
    """RWKV-7 whose ranks equal its width: `--from` says whose layout it is."""
    official = official_weights("7", rng, ranks=(16, 16, 16, 16))
    write_pth(tmp_path / "a.pth", official)
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.st"), "--dtype", "float32"]) == 0
    assert main(["convert", str(tmp_path / "a.st"), str(tmp_path / "b.pth")]) == 1
    assert "`--from st`" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.st"), str(tmp_path / "b.pth"), "--from", "st"]) == 0
    assert_same(contents(tmp_path / "b.pth"), official)


def test_an_epsilon_that_is_lost_is_said(model, tmp_path, capsys, command):
    """And the check is about the weights: it computes both with the epsilon of SRC."""
    assert main(["convert", str(model), str(tmp_path / "preset")]) == 0
    keys = json.loads((tmp_path / "preset/config.json").read_text())
    (tmp_path / "preset/config.json").write_text(json.dumps({**keys, "group_norm_epsilon": 1e-5}))
    assert main(["convert", str(tmp_path / "preset"), str(tmp_path / "again")]) == 0
    assert capsys.readouterr().err == ""
    target = tmp_path / "a.pth"
    code, _, said = command("convert", tmp_path / "preset", target, "--check", KERAS_BACKEND="numpy")
    assert code == 0
    assert said.splitlines()[0] == f"{target} cannot say group_norm_epsilon=1e-05: build the model with it."


@pytest.mark.parametrize("target, kind", [("a.pth", "float16"), ("a.gguf --dtype q8_0", "q8_0")])
def test_a_check_passes(tmp_path, command, target, kind):
    """A trained model, the shipped one: the same float16 weights give the same logits, and rounded ones nearly so."""
    name, *options = target.split()
    code, said, _ = command("convert", "finch-jargon", tmp_path / name, *options, "--check", KERAS_BACKEND="numpy")
    assert code == 0
    pattern = r"Checked as (\w+): largest .* at most (\S+) at the .* the same likeliest token at (\S+)%"
    found = re.search(pattern, said.decode())
    assert found[1] == kind and (float(found[2]) > 0) == (kind != "float16") and float(found[3]) > 95


def test_a_check_fails(model, tmp_path, capsys, monkeypatch):
    """A writer that gets one small vector wrong is found out; the exit code is 1."""
    written = format_named("pth")

    def wrong(path, tensors, config, *rest):
        arrays = dict(tensors)
        arrays["blocks.1.att.time_decay"] = arrays["blocks.1.att.time_decay"] + 0.5
        written.write(path, arrays, config, *rest)

    broken = dataclasses.replace(written, write=wrong)
    monkeypatch.setattr(convert, "formats", lambda: [broken])
    assert main(["convert", str(model), str(tmp_path / "a.pth"), "--check"]) == 1
    assert "was written, but does not compute what" in capsys.readouterr().err


@pytest.mark.parametrize("kind, factor", [("float32", 1e-4 * 3), ("float16", 0.01), ("q8_0", 0.15)])
def test_the_bar(kind, factor):
    """It grows with the logits; NaN is above every bar."""
    logits = np.resize([[[-1.5, 1.5], [-1.5, 1.5]]], (1, 64, 2)) * (2 if kind == "float32" else 1)  # deviation 1.5
    for scale in (1, 10):
        for share, passed in ((0.99, True), (1.01, False), (np.nan, False)):
            assert convert.compared(scale * logits, scale * (logits + factor * share), kind).passed == passed


@pytest.mark.parametrize("kind, passed", [("float32", False), ("bfloat16", True)])
def test_a_few_positions_may_be_worse(kind, passed):
    """Where weights were rounded, and not where they are the same."""
    logits = np.resize([[[-1.5, 1.5]]], (1, 64, 2))
    after = logits.copy()
    after[0, :5] += 1
    result = convert.compared(logits, after, kind)
    assert (result.passed, result.difference, result.agreement) == (passed, 1, 1)


@pytest.mark.parametrize("target", ["a.pth", "preset"])
def test_weights_that_do_not_fit_write_nothing(model, tmp_path, capsys, target):
    arrays = contents(model)
    del arrays["ln_out.bias"]
    write_pth(tmp_path / "torn.pth", arrays)
    assert main(["convert", str(tmp_path / "torn.pth"), str(tmp_path / target)]) == 1
    assert "nothing in the file fills 'ln_out/beta' (ln_out.bias)" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["model", "torn.pth"]


PEAK = """
    import resource, sys
    import numpy as np
    from bert4keras_rwkv.cli import main
    from bert4keras_rwkv.weights import tensors, write_pth
    from tests.official import official_weights

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def rows(start, stop):
        return np.ones((stop - start, 512), np.float32)

    def convert(name):
        source = f"{folder}/{name}"
        for i, to in enumerate(formats):
            if main(["convert", source, f"{folder}/{name}{i}", "--to", to]) != 0:
                raise SystemExit("not converted")
            source = f"{folder}/{name}{i}"

    folder, *formats = sys.argv[1:]
    tensors.WIDE_PIECE = 1 << 22
    small = tensors.as_tensors(official_weights("6", np.random.default_rng(0), ids=16, head_size=256, layers=1))
    matrix = tensors.Tensor((1 << 15, 512), np.dtype("float32"), lambda: rows(0, 1 << 15), rows)
    write_pth(f"{folder}/small", small)
    write_pth(f"{folder}/large", tensors.Tensors(small.entries() | {"emb.weight": matrix, "head.weight": matrix}))
    convert("small")
    before = peak()
    convert("large")
    print(peak() - before)
"""


@pytest.mark.parametrize("formats", [("st", "gguf"), ("preset", "pth")])
def test_no_large_matrix_is_ever_whole_in_memory(tmp_path, formats):
    """Two of 64 MiB are converted, after small ones have loaded every library: memory grows by less than half."""
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path), *formats]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": "numpy"})
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.splitlines()[-1]) < 32 << 20


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("target", ["a.pth", "a.safetensors", "preset"])
def test_ctrl_c_is_clean(model, tmp_path, start, target):
    """Stopped in the middle of writing: 130, no traceback, and nothing under the name or a temporary one.

    The middle is made sure of by a tensor that is slow to read.
    """
    slow = (
        "import sys, time\n"
        "from bert4keras_rwkv.weights import tensors\n"
        "read = tensors.Tensor.pieces\n"
        "def slowly(self):\n"
        "    if self.shape == (16,): print('now', flush=True); time.sleep(60)\n"
        "    return read(self)\n"
        "tensors.Tensor.pieces = slowly\n"
        "from bert4keras_rwkv.cli import main\n"
        "sys.exit(main())"
    )
    running = start("-c", slow, "convert", model, tmp_path / target)
    assert running.stdout.readline() == b"now\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, b"\nStopped.\n")
    assert os.listdir(tmp_path) == ["model"]
