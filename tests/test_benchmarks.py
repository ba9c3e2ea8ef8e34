"""Benchmarks: how programs are started, asked and reported; of those on a GPU, where there is none."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import gpu, gpu_page, report, serving
from benchmarks.rounds import Series
from benchmarks.tables import Group

pytestmark = pytest.mark.backend_free
ROOT = Path(__file__).resolve().parents[1]


def options(*more):
    return program.arguments(["--only", "gpu", "--dry", "--rounds", "2", *more])


def measured(monkeypatch, programs, *more):
    """The groups, as they are after the last of these programs."""
    monkeypatch.chdir(ROOT)  # where workers are found
    monkeypatch.setattr(gpu, "programs", lambda *_: iter(programs))
    return dict(gpu.gpu(options(*more), lambda text: None))


def limits(label, device="cpu", absent=""):
    commands, numpy = ["copy 4", "product 64"], {"KERAS_BACKEND": "numpy"}
    return gpu.Program("gpu", label, "gpu_limits", (device, 1 << 16), numpy, commands, absent)


def test_programs_are_measured_or_it_is_said_why_not(monkeypatch):
    """One answers, one cannot be made, one is not installed; all before the time is over."""
    programs = [limits("numpy"), limits("another", "cuda"), limits("fla", absent="fla-core is not installed")]
    (group,) = measured(monkeypatch, programs).values()
    assert {(one.label, one.command, len(one.seconds)) for one in group["series"]} == {
        ("numpy", "copy 4", 2),
        ("numpy", "product 64", 2),
    }
    facts = group["facts"]
    assert facts["here"]["limits"]["bandwidth"] > 0 and facts["here"]["limits"]["rate"] > 0
    why = "RuntimeError: numpy does not see the card: its arrays live on cpu"
    assert facts["absent"] == {"copy": {"another": why, "fla": "fla-core is not installed"}}
    assert not facts["left out"]


def test_what_there_is_no_time_for_is_named(monkeypatch):
    (group,) = measured(monkeypatch, [limits("numpy"), limits("another")], "--minutes", "0").values()
    assert group["facts"]["left out"] == ["numpy (copy)", "another (copy)"] and not group["series"]


NAME = "gpu rwkv7 24x1024"
HERE = {
    "card": "A card",
    "versions": {"jax": "1"},
    "limits": {"bandwidth": 4e12, "rate": 8e14},
    "amounts": vars(gpu.Amounts()),
}
# What a sample of 4 steps, of a prompt, of 32 tokens took, in milliseconds.
TOOK = {
    ("ours jax", "train 4"): 200,
    ("ours torch", "train 4"): 400,
    ("ours torch, kernel of fla-core", "train 4"): 420,
    ("ours jax", "prefill 4096"): 10,
    (gpu.RWKV, "prefill 4096"): 12,
    ("ours jax", "decode 32 1"): 16,
    ("ours jax", "decode 32 64"): 32,
    (gpu.RWKV, "decode 32 1"): 64,
}


def figures():
    series = [asdict(Series(NAME, *one, [ms / 1e3] * 3, [0.0] * 3)) for one, ms in TOOK.items()]
    facts = {
        "here": HERE,
        "absent": {"train": {"ours jax, kernel of rwkv_ops": "rwkv_ops is not installed"}},
        "left out": ["ours torch, pure ops (prefill)"],
    }
    return {"series": series, "facts": facts, "command": "python -m benchmarks --only gpu", "processor": "a processor"}


def test_goals_are_reckoned_in_tokens_of_all_rows():
    found = {(what.removeprefix("GPU, rwkv7 24x1024, "), wanted): (got, reached) for what, wanted, got, reached in
             gpu_page.targets(NAME, Group(figures()))}  # fmt: skip
    assert found == {
        ("training step, torch", "1.1 x fla-core"): ("1.05 x", False),
        ("prefill 4096, ours jax", f"1.1 x {gpu.RWKV}"): ("1.20 x", True),
        ("decode, 1 row, ours jax", "70% of the bandwidth"): ("39%", False),
        ("decode, 1 row, ours jax", f"1.2 x {gpu.RWKV}"): ("4.00 x", True),
        ("decode, 64 rows, ours jax", "70% of the bandwidth"): ("39%", False),
        ("decode, 64 rows, ours jax", f"1.2 x {gpu.RWKV}"): ("128.00 x", True),
    }


def test_the_page_names_the_card_and_what_is_missing():
    machine = {"processor": "a processor", "threads": 2, "system": "Linux", "python": "3", "versions": {}}
    text = report.page({"machine": machine, "groups": {NAME: figures()}})
    assert "## On a GPU: A card" in text and "### RWKV-7 24x1024" in text
    assert "copies 4 TB/s" in text and "at 800 TFLOP/s" in text
    assert "| ours jax | 50.0 (50.0 to 50.0) | 81920 (81920 to 81920) |" in text
    assert "| ours jax, kernel of rwkv_ops | rwkv_ops is not installed |" in text
    assert "There was no time for ours torch, pure ops (prefill)." in text
    assert "On a GPU" not in report.page({"machine": machine, "groups": {}})


# What servers took, in milliseconds.
SERVED = {
    (serving.ROWS, "greedy 64 1"): 100,
    (serving.ROWS, "greedy 1024 16"): 200,
    (serving.OURS, "greedy 64 1"): 105,
    (serving.OURS, "greedy 1024 16"): 240,
    (serving.OURS, "sampled 1024 16"): 250,
    (serving.OURS, "first 1"): 10,
    (serving.OURS, "second 2000"): 20,
    (serving.OURS, "returned 2000"): 20,
    (serving.OURS, "restarted 2000"): 50,
    (serving.NO_CACHE, "second 2000"): 240,
    (serving.LLAMA_SERVER, "greedy 64 1"): 84,
    (serving.LLAMA_SERVER, "greedy 1024 16"): 480,
}


def test_goals_of_serving_and_its_page():
    name = "serving rwkv7 12x768"
    series = [asdict(Series(name, *one, [ms / 1e3] * 3, [0.0] * 3)) for one, ms in SERVED.items()]
    facts = {serving.OURS: [{"median": 0.5, "p99": 1.5}] * 3, serving.NO_CACHE: []}
    group = {"series": series, "facts": facts, "command": "python -m benchmarks", "processor": "a processor"}
    found = {(what.removeprefix(f"{name}: "), wanted): (got, reached) for what, wanted, got, reached in
             serving.targets(name, Group(group))}  # fmt: skip
    assert found == {
        ("16 streams", "6 x one"): ("7.0 x", True),
        ("1 streams over HTTP", "at most 1.1 x the time of the bare loop"): ("1.05 x", True),
        ("16 streams over HTTP", "at most 1.1 x the time of the bare loop"): ("1.20 x", False),
        ("first text of 64 clients, 99th percentile", "at most 4 x the median"): ("3.00 x", True),
        ("second turn", "10 x sooner than read again"): ("12.0 x", True),
        ("second turn after a restart", "5 x sooner than read again"): ("4.8 x", False),
        ("greedy, streams: 1", "1 x llama-server"): ("0.80 x", False),
        ("greedy, streams: 16", "1 x llama-server"): ("2.00 x", True),
    }
    machine = {"processor": "a processor", "threads": 2, "system": "Linux", "python": "3", "versions": {}}
    text = report.page({"machine": machine, "groups": {name: group}})
    assert "## Serving: RWKV-7 12x768" in text and "500.0 (500.0 to 500.0) ms in the median" in text
    ours = "| ours | 609.5 (609.5 to 609.5) |  | 4266.7 (4266.7 to 4266.7) | 7.0 | 4096.0 (4096.0 to 4096.0) | 10.0 "
    assert ours in text


@pytest.mark.slow
def test_all_of_it_runs_without_a_card(tmp_path):
    """Every program of both backends, on tiny models; the packages that are not installed are named."""
    file = tmp_path / "benchmarks.json"
    asked = ["--only", "gpu", "--dry", "--rounds", "1", "--sizes", "1x64", "--together", "2", "--minutes", "30"]
    command = [sys.executable, "-m", "benchmarks", *asked, "--json", str(file), "--cache", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, done.stderr
    groups = json.loads(file.read_text())["groups"]
    for version in "67":
        group = groups[f"gpu rwkv{version} 1x64"]
        labels = {(one["label"], one["command"].split()[0]) for one in group["series"]}
        ours = [f"ours {backend}{kind}" for backend in gpu.BACKENDS for kind in ("", ", pure ops")]
        wanted = {(label, word) for label in ours for word in ("train", "prefill", "decode")}
        assert labels >= wanted | {(gpu.RWKV, "prefill"), (gpu.RWKV, "decode")}, group["facts"]
    assert "### RWKV-6 1x64" in file.with_suffix(".md").read_text()
