"""Programs are asked in turn; one that fails is a row that says why, and takes nothing from the others."""

from contextlib import closing

import pytest

from bert4keras_rwkv.evaluation.speed import Settings, measure_speed
from bert4keras_rwkv.evaluation.speed.measure import _Entry, _together
from bert4keras_rwkv.evaluation.speed.programs import Subject, peer
from bert4keras_rwkv.evaluation.speed.report import Row, ranged
from bert4keras_rwkv.evaluation.speed.worker import Worker, WorkerError

pytestmark = pytest.mark.backend_free

# In the place of this package: the seconds of an answer are how many there were before it.
STAND_IN = """
import os
from bert4keras_rwkv.evaluation.speed.serving import serve

class StandIn:
    def __init__(self, options):
        self.strategy, self.asked = options["strategy"], 0
        self.facts = {"strategy": self.strategy, "needed_bytes": {"cpu:0": 10}, "free_bytes": {}, "versions": {}}

    def load(self):
        if self.strategy == "cpu fp16":
            raise MemoryError("too large")
        return {"load_seconds": 1.0, "first_seconds": 2.0, "held_bytes": 10, "step_bytes": 8}

    def prefill(self, count):
        self.asked += 1
        return float(self.asked)

    def decode(self, count):
        if self.strategy == "cpu bf16":
            os._exit(3)
        return 0.5

if __name__ == "__main__":
    serve(StandIn)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The name of its module."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "stand_in"


def test_what_fails_is_a_row(stand_in):
    """When it is loaded, or later; what was measured before stays."""
    settings, done = Settings(prompt=4, decode=2, rounds=3), []
    strategies = ["cpu fp32", "cpu fp16", "cpu bf16"]
    report = measure_speed("finch-jargon", strategies, settings=settings, module=stand_in, say=done.append)
    whole, unloaded, broken = report.rows
    assert whole.seconds == {"prefill 4": [2.0, 3.0, 4.0], "decode 2": [0.5] * 3}  # without the round to warm up
    assert report.rates(whole, "decode 2") == [4.0] * 3 and whole.start_seconds > 3.0 and whole.peak_bytes > 0
    assert report.limit(whole, "decode 2") == [bandwidth / 8 for bandwidth in whole.bandwidth()]
    assert unloaded.why_not == "MemoryError: too large" and not unloaded.seconds
    assert broken.failures == dict.fromkeys(settings.commands, "its process ended with 3") and not broken.seconds
    assert report.measured == [whole] and "cpu bf16, decode 2: its process ended with 3" in str(report)
    first = [next(i for i, line in enumerate(done) if f"round {n}" in line) for n in range(4)]
    assert first == sorted(first)


def test_an_error_is_an_answer(stand_in):
    """After which the process answers on."""
    with closing(Worker(stand_in, {"strategy": "cpu fp32", "cores": None})) as worker:
        with pytest.raises(WorkerError, match="AttributeError"):
            worker.ask("nonsense")
        assert worker.ask("decode 1") == {"seconds": 0.5}


def test_models_that_do_not_fit_together_are_measured_apart():
    """Those that are too large for nine tenths of the memory alone are tried alone."""
    sizes = [40, 50, 1, 95, 10]
    entries = [_Entry(Row("a", "a", "a"), [], None, {"cpu:0": size}, {"cpu:0": 100}) for size in sizes]
    found = [[entry.needed["cpu:0"] for entry in group] for group in _together(entries)]
    assert found == [[40, 50], [1], [95], [10]]


@pytest.mark.parametrize(
    "name, strategy, told",
    [
        ("rwkv", "cpu fp32i4", "no i4"),
        ("llama.cpp", "cpu fp32 *1 -> cpu fp32i8", "where all is on the processor"),
        ("llama.cpp", "cuda fp16", "where all is on the processor"),
    ],
)
def test_what_a_peer_cannot(name, strategy, told, tmp_path, monkeypatch):
    monkeypatch.setattr("bert4keras_rwkv.evaluation.speed.programs.find_spec", lambda name: True)
    with pytest.raises(ValueError, match=told):
        peer(name, Subject.of("finch-jargon"), strategy, Settings(), tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_a_peer_is_given_its_own_file(tmp_path, monkeypatch):
    """Of the same weights: in the type that is nearest to a strategy."""
    monkeypatch.setattr("bert4keras_rwkv.evaluation.speed.programs.find_spec", lambda name: True)
    subject, settings = Subject.of("finch-jargon"), Settings(texts=(2,))
    packed = peer("llama.cpp", subject, "cpu fp32i8", settings, tmp_path, 1)
    whole = peer("rwkv", subject, "cpu fp32", settings, tmp_path, 1)
    assert packed.label == "llama.cpp, Q8_0" and whole.label == "rwkv, cpu fp32"
    for one in (packed, whole):
        other = Subject.of(one.options["path"])
        assert (other.config, other.parameters) == (subject.config, subject.parameters)
    assert len(packed.commands) == 3 and len(whole.commands) == 2


def test_settings_are_whole_numbers():
    for wrong in ({"prompt": 0}, {"rounds": 1.5}, {"texts": (8, 0)}, {"threads": 0}, {"decode": True}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` of `Settings` is a whole number"):
            Settings(**wrong)


def test_a_range_is_three_digits():
    assert [ranged(values) for values in ([], [1.234], [3, 1, 2000])] == ["–", "1.23", "3.00 (1.00 to 2,000)"]
