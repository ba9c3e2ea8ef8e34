"""`evaluate` prints what `evaluation` computes of a file, in any of its forms.

What is computed is tested on every backend in tests/evaluation; here one run is enough, but for the command itself.
"""

import json

import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.evaluation import evaluate_lambada, evaluate_text, read_lambada
from bert4keras_rwkv.models import RWKV
from bert4keras_rwkv.training import write_binidx, write_records

TEXTS = ["hello the end", "x the é the", "the hello"]
SETTINGS = ["--batch-size", "4", "--chunk-length", "16"]


@pytest.fixture
def rwkv(model):
    return RWKV.from_preset(model)


@pytest.fixture
def evaluate(model, capsys):
    """Run the command here; what it printed, parsed."""

    def run(file, *arguments):
        code = main(["evaluate", str(file), "--model", str(model), "--json", *SETTINGS, *map(str, arguments)])
        out, said = capsys.readouterr()
        return json.loads(out) if code == 0 else (code, said)

    return run


def write(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.backend_free
def test_every_form_gives_the_same(evaluate, rwkv, tmp_path):
    """What `evaluate_text` says of the texts."""
    score = evaluate_text(rwkv, TEXTS, batch_size=4, chunk_len=16)
    ids = rwkv.tokenizer.encode(TEXTS)
    write(tmp_path / "a.jsonl", [{"text": text} for text in [*TEXTS, ""]])
    (tmp_path / "a.txt").write_text("\n==\n".join(TEXTS), encoding="utf-8")
    write_records(tmp_path / "a.tfrecord", ids)
    write_binidx(tmp_path / "a.bin", ids)
    for name in ("a.jsonl", "a.txt", "a.tfrecord", "a.bin"):
        found = evaluate(tmp_path / name, *(["--separator", "=="] if name == "a.txt" else []))
        assert (found["documents"], found["tokens"]) == (3, score.tokens)
        assert found["bytes"] == len("".join(TEXTS).encode())
        assert found["bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-6)
        assert found["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)
        assert found["accuracy"] == score.accuracy
    limited = evaluate(tmp_path / "a.bin", "--limit", 1, "--no-end")
    assert (limited["documents"], limited["tokens"]) == (1, len(ids[0]))


@pytest.mark.backend_free
def test_state_and_adapter(evaluate, rwkv, tmp_path):
    """Texts begin in the state of a file; `--begin end` reads an end token in it. An adapter's is no other."""
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    _, state = rwkv.prefill([rwkv.tokenizer.encode("hello hello the ")], chunk_len=16)
    rwkv.save_state(state, tmp_path / "own.state")
    rwkv.enable_state_tuning(time_shift_tuning=True)
    rwkv.set_tuned_state(state)
    rwkv.save_adapter(tmp_path / "adapter.safetensors")
    for option, file in (("--state", "own.state"), ("--adapter", "adapter.safetensors")):
        for begin, after_end in (("auto", False), ("end", True)):
            found = evaluate(path, option, tmp_path / file, "--begin", begin)
            score = evaluate_text(rwkv, TEXTS, batch_size=4, chunk_len=16, after_end=after_end)
            assert found["tokens"] == score.tokens
            assert found["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)


@pytest.mark.backend_free
def test_lambada(evaluate, rwkv, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    score = evaluate_lambada(rwkv, read_lambada(path), batch_size=4, chunk_len=16)
    found = evaluate(path, "--task", "lambada")
    assert (found["examples"], found["accuracy"]) == (3, score.accuracy)
    assert found["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)


@pytest.mark.backend_free
def test_what_people_read(model, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"text": TEXTS[0]}])
    assert main(["evaluate", str(path), "--model", str(model), *SETTINGS]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}, read by {model}\n  documents ")
    assert "bits per byte" in shown and "perplexity of a token" in shown and "%" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no.jsonl"], 1, "There is no jsonl data set"),
        (["a.jsonl", "--task", "lambada"], 1, "a.jsonl', line 1: the last word"),
        (["empty.jsonl"], 1, "no token to predict"),
        (["ids.tfrecord"], 1, "ids.tfrecord', record 0: id 300"),
    ],
)
@pytest.mark.backend_free
def test_what_is_wrong_is_said(evaluate, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    write(tmp_path / "empty.jsonl", [{"text": ""}])
    write_records(tmp_path / "ids.tfrecord", [[300]])
    got, error = evaluate(*arguments)
    assert got == code and said in error


@pytest.mark.backend_free
def test_text_needs_a_tokenizer(evaluate, model, tmp_path):
    """Ids do not, but have no bytes then."""
    (model.parent / "rwkv_vocab_tiny.txt").unlink()
    code, said = evaluate(write(tmp_path / "a.jsonl", [{"text": "one"}]))
    assert code == 1 and "needs a tokenizer" in said
    write_records(tmp_path / "ids.tfrecord", [[3, 1, 2]])
    found = evaluate(tmp_path / "ids.tfrecord")
    assert found["bits_per_byte"] is None and found["tokens"] == 4


def test_it_runs_as_a_command(command, model, tmp_path):
    """On the backend of its own choice, with nothing else on stdout."""
    path = write(tmp_path / "a.jsonl", [{"text": TEXTS[0]}])
    code, out, said = command("evaluate", path, "--model", model, "--json", *SETTINGS)
    assert code == 0, said
    assert json.loads(out)["documents"] == 1
