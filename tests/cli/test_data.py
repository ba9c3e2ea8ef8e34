"""`data` writes a data set in another form, whole or not at all, and says what it left out."""

import json

import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.cli.arguments import DATA_FORMS
from bert4keras_rwkv.data.convert import SUFFIXES
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.training import Binidx, RecordFile, write_binidx, write_records

pytestmark = pytest.mark.backend_free

TEXTS = ["hello the\n\nend", "中文 é\r\n", "x"]


@pytest.fixture
def vocabulary(model):
    return model.parent / "rwkv_vocab_tiny.txt"


@pytest.fixture
def source(tmp_path):
    """JSON lines of TEXTS and an empty one."""
    lines = [json.dumps({"text": text}) for text in [*TEXTS, ""]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"


def run(*arguments):
    return main(["data", *map(str, arguments)])


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("form", ["b.tfrecord", "b.bin", "b.txt", "b.jsonl"])
def test_there_and_back(source, tmp_path, vocabulary, form, capsys):
    """Texts that were written in any form are the same texts when they come back."""
    options = ["--tokenizer", vocabulary, "--separator", "<end>"]
    assert run(source, tmp_path / form, *options) == 0
    out, err = capsys.readouterr()
    assert "3 documents" in out and err == "Empty documents, left out: 1\n"
    assert run(tmp_path / form, tmp_path / "c.jsonl", *options) == 0
    assert texts_of(tmp_path / "c.jsonl") == TEXTS


def test_ids_are_the_tokenizers(source, tmp_path, vocabulary, capsys):
    """In TFRecords and, with an end token behind each document, in binidx."""
    wanted = RWKV_TOKENIZER(vocabulary).encode(TEXTS)
    assert run(source, tmp_path / "b.tfrecord", "--tokenizer", vocabulary, "--workers", 2) == 0
    assert f"3 documents, {sum(map(len, wanted))} tokens" in capsys.readouterr().out
    assert run(tmp_path / "b.tfrecord", tmp_path / "b.idx") == 0
    for found in (RecordFile(tmp_path / "b.tfrecord"), Binidx(tmp_path / "b")):
        assert [one.ids.tolist() for one in found] == wanted
    assert np.fromfile(tmp_path / "b.bin", "<u2").tolist() == [id for ids in wanted for id in (*ids, 0)]


def test_a_folder_is_one_data_set(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for name in ("b", "a"):
        (tmp_path / f"texts/{name}.txt").write_text(f"{name} text\n")
    assert run(tmp_path / "texts", tmp_path / "c.jsonl") == 0
    assert texts_of(tmp_path / "c.jsonl") == ["a text\n", "b text\n"]


def test_answers_stay_where_the_form_has_a_place(tmp_path, vocabulary, capsys):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    assert run(tmp_path / "a.jsonl", tmp_path / "b.tfrecord", "--tokenizer", vocabulary) == 0
    assert capsys.readouterr().err == ""
    tokenizer, one = RWKV_TOKENIZER(vocabulary), RecordFile(tmp_path / "b.tfrecord")[0]
    assert tokenizer.decode(one.ids[one.answer == 1]) == " the\n\n"
    assert run(tmp_path / "b.tfrecord", tmp_path / "b.bin") == 0
    assert "Conversations of which" in capsys.readouterr().err


def test_ids_that_are_no_text_are_told(tmp_path, vocabulary, capsys):
    """A document cut inside a character, as pieces of fixed length are."""
    ids = RWKV_TOKENIZER(vocabulary).encode_bytes(b"\xe4\xb8")
    write_records(tmp_path / "a.tfrecord", [ids])
    assert run(tmp_path / "a.tfrecord", tmp_path / "b.jsonl", "--tokenizer", vocabulary) == 0
    assert texts_of(tmp_path / "b.jsonl") == ["\ufffd"]
    assert "no valid UTF-8, with U+FFFD for what is not: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.jsonl", "b.bin"], "needs a tokenizer"),
        (["a.jsonl", "b.xyz"], "The suffix of a data set is one of .jsonl,"),
        (["no.jsonl", "b.txt"], "There is no jsonl data set"),
        (["a.jsonl", "b.txt"], "several documents"),
        (["ids.tfrecord", "b.bin", "--tokenizer", "world"], "ids.tfrecord', record 1: id 65535 at position 2"),
        (["wide.tfrecord", "b.bin"], "Document 0 (uint16 holds ids below 65536): id 65536"),
        (["broken.tfrecord", "b.bin"], "broken.tfrecord', record 1"),
        (["broken.bin", "b.tfrecord"], "item 1 lies in bytes"),
        (["a.jsonl", "nowhere/b.jsonl"], "nowhere: There is no such folder"),
        ([".", "b.txt"], "holds data of 3 forms"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(source, tmp_path, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_records("ids.tfrecord", [[1, 2], [1, 2, 65535]])
    write_records("wide.tfrecord", [[65536]])
    write_records("broken.tfrecord", [[1, 2], [3]])
    write_binidx("broken", [[1, 2], [3]])
    for name in ("broken.tfrecord", "broken.bin"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert run(*arguments) in (1, 2)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*b.*")) and not list(tmp_path.glob(".*"))


def test_the_command_line_names_every_form():
    assert (*SUFFIXES,) == DATA_FORMS


def test_no_backend_is_loaded(source, start, tmp_path):
    """A converter has nothing to compute."""
    code = "import sys; from bert4keras_rwkv.cli import main; main()"
    code += "; print([name for name in ('keras', 'jax', 'tensorflow', 'torch') if name in sys.modules])"
    process = start("-c", code, "data", source, tmp_path / "b.tfrecord", "--tokenizer", "finch-jargon")
    out, said = process.communicate(timeout=120)
    assert out.decode().splitlines()[-1] == "[]", said


@pytest.mark.parametrize("target", ["old.tfrecord", "old.jsonl"])
def test_a_source_without_documents_replaces_nothing(tmp_path, vocabulary, target, capsys):
    """A file that was cut to nothing is an error, and what stands at the target stays."""
    source, old = tmp_path / "empty.txt", tmp_path / target
    source.write_text("")
    old.write_bytes(b"data of yesterday")
    assert main(["data", str(source), str(old), "--tokenizer", str(vocabulary)]) == 1
    assert "holds no document" in capsys.readouterr().err
    assert old.read_bytes() == b"data of yesterday"
