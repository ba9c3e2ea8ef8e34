"""Measure and write docs/benchmarks.json, docs/benchmarks.md and docs/benchmarks.png. See --help."""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from . import gpu, plans, report

DOCS = Path(__file__).resolve().parent.parent / "docs"


def arguments(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; medians are reported (7)")
    parser.add_argument("--starts", type=int, default=3, help="how often each program is started for load times (3)")
    parser.add_argument(
        "--sizes", nargs="*", help="layers x width of the models (12x768 24x1024; gpu: 24x1024 24x2048)"
    )
    parser.add_argument("--only", nargs="*", choices=plans.GROUPS, default=plans.USUAL, help="groups to measure")
    parser.add_argument("--backends", nargs="*", default=["jax"], help="Keras backends to measure as language models")
    parser.add_argument("--threads", type=int, default=2, help="processors given to every program (2)")
    parser.add_argument(
        "--wait", type=float, default=2.0, help="seconds to wait for a quiet moment before a sample (2)"
    )
    parser.add_argument("--cache", type=Path, help="folder of the random checkpoints (the user's cache folder)")
    parser.add_argument(
        "--json", type=Path, default=DOCS / "benchmarks.json", help="the measurements, read and written"
    )
    parser.add_argument("--keras-hub", type=Path, help="a Python with Keras Hub, to train beside ours (none)")
    parser.add_argument("--llama-cpp", type=Path, help="quantised, start, serving: Python with llama-cpp-python (none)")
    parser.add_argument("--llama-server", type=Path, help="serving: the server of llama.cpp (none)")
    parser.add_argument("--versions", nargs="*", default=["7", "6"], help="quantised, start, serving: of RWKV (7 6)")
    parser.add_argument("--brief", action="store_true", help="quantised: nothing but decoding one text, on JAX")
    parser.add_argument("--minutes", type=float, default=9.0, help="gpu: what is not measured by then is left out (9)")
    parser.add_argument("--together", type=int, default=4, help="gpu: programs of 0.4B that start at a time (4)")
    parser.add_argument("--dry", action="store_true", help="gpu: without one, on tiny amounts, to see that all runs")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the page again from the JSON")
    options = parser.parse_args(argv)
    if options.sizes is None:
        options.sizes = gpu.SIZES if options.only == ["gpu"] else ["12x768", "24x1024"]
    return options


INSTRUCTIONS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}


def machine(threads):
    """The circumstances that a reader needs to compare with his own."""
    with open("/proc/cpuinfo") as info:
        said = dict(line.split(":", 1) for line in info if ":" in line)
    said = {name.strip(): value.strip() for name, value in said.items()}
    flags = said.get("flags", "").split()
    widest = next((f" with {name}" for flag, name in INSTRUCTIONS.items() if flag in flags), "")
    packages = [name for name in ("rwkv", "keras", "jax", "tensorflow-cpu", "torch", "numpy") if installed(name)]
    return {
        "processor": said.get("model name", "unknown") + widest,
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name).split("+")[0] for name in packages},
    }


def installed(name):
    return next(metadata.Distribution.discover(name=name), None) is not None


def main():
    options = arguments()
    if not options.report:
        if options.only != ["gpu"]:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
        results = json.loads(options.json.read_text()) if options.json.exists() else {"groups": {}}
        here = machine(options.threads)
        if "model" in options.only:
            results["machine"] = here
        results.setdefault("machine", here)
        for name, group in plans.measure(options):
            group["series"] = [asdict(series) for series in group["series"]]
            group["processor"] = here["processor"]
            group["command"] = " ".join(["python -m benchmarks", *sys.argv[1:]])
            results["groups"][name] = group
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    report.write(
        json.loads(options.json.read_text()), options.json.with_suffix(".md"), options.json.with_suffix(".png")
    )


if __name__ == "__main__":
    main()
