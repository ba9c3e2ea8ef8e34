"""What `make test-gpu` says of its steps, and where there is no card. The steps themselves need one."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from bert4keras_rwkv.ops.kernels import cuda

pytestmark = pytest.mark.backend_free

FILE = Path(__file__).resolve().parents[2] / "scripts/check_gpu.py"
SPEC = importlib.util.spec_from_file_location(FILE.stem, FILE)
script = importlib.util.module_from_spec(SPEC)
sys.modules[FILE.stem] = script  # dataclasses look there
SPEC.loader.exec_module(script)


def test_without_a_card_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(cuda, "DRIVER", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(cuda, "_found", {})
    assert script.main([]) == 1
    said = capsys.readouterr()
    assert said.err == "No kernel of a GPU can run here: There is no CUDA driver (/nowhere/libcuda.so.1).\n"
    assert not said.out


def step(name, code, **more):
    return script.Step(name, (sys.executable, "-c", code), **more)


@pytest.mark.parametrize("wrong", [False, True])
def test_lines_say_what_passed_failed_and_was_skipped(wrong, tmp_path, monkeypatch, capsys):
    """Of a card that is none, which PyTorch sees and JAX does not."""
    made_up = [step("check torch", "print('right')"), step("sanitizer racecheck", "", said="it is not on the path")]
    made_up += [step("laws 6 torch", "print('a trace'); exit('it is wrong')")] if wrong else []
    monkeypatch.setattr(script, "LOGS", tmp_path)
    monkeypatch.setattr(script, "found", lambda: "a card.")
    monkeypatch.setattr(script, "sees_card", lambda backend: (backend == "torch", "cpu"))
    monkeypatch.setattr(script, "steps", lambda backends, sanitizer: made_up if backends == ["torch"] else [])
    assert script.main([]) == wrong
    text = capsys.readouterr().out
    assert text.startswith("The card: a card.\n  skipped all of jax")
    assert "  passed  check torch" in text and "  skipped sanitizer racecheck" in text
    if wrong:
        assert "  FAILED  laws 6 torch" in text and "1 passed, 1 FAILED, 2 skipped, in" in text
        assert text.endswith(f"the end of {tmp_path}/laws-6-torch.log\na trace\nit is wrong\n")
    else:
        assert "1 passed, 2 skipped, in" in text


def test_what_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LOGS", tmp_path)
    done = step("laws 6 torch", "import time; time.sleep(60)").run(time.monotonic() + 0.5)
    assert (done.ended, done.said) == ("FAILED", "stopped: no time is left") and done.seconds < 30
