"""The kernels of a GPU on the card that is here: compared with the loop, through the laws, and under compute-sanitizer.

    python scripts/check_gpu.py [--minutes 9.5]

Runs in the environment as it is; see `make test-gpu`. Each step is a process, several run together, and what each says
is kept in build/gpu. A line for each tells how it ended, and why one is skipped. Exit status 1: a step failed, or there
is no card.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "gpu"
BACKENDS = {"jax": "jax[cuda12] or jax[cuda13]", "torch": "torch of the CUDA index"}
TOOLS = "memcheck", "racecheck", "synccheck"  # of compute-sanitizer
# Many processes, for compiling takes the time. The laws of 5.2 are left to PyTorch, as on a CPU.
PARTS = "wkv4", "wkv6", "wkv7", "not wkv"
LAWFUL = {"jax": ("4", "6", "7"), "torch": ("4", "5.2", "6", "7")}
CHECK = "-m", "bert4keras_rwkv", "kernels", "--check"
EVERY_KERNEL = "-m", "tests.ops.kernels.every_kernel"
PYTEST = "-m", "pytest", "--quiet", "--gpu", "-p", "no:cacheprovider"
WARN = "-W", "default"  # what libraries warn of on a card is shown, not an error
WHERE = "from bert4keras_rwkv.ops import backend; print(backend.device_kind())"
# Products of float32 as float32. No choosing among forms of a product, which takes time and may choose differently the
# next time. Processes share the card's memory.
SETTINGS = {
    "OPS_KERNEL": "0",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


@dataclass
class Step:
    """A process, and how it ended: 'passed', 'FAILED' or 'skipped'. said: why it is skipped, or its last line."""

    name: str
    command: tuple = ()
    environment: dict = field(default_factory=dict)
    said: str = ""
    ended: str = "skipped"
    seconds: float = 0.0

    @property
    def log(self):
        return LOGS / f"{self.name.replace(' ', '-')}.log"

    def run(self, until):
        """Run it; what is not done at `until`, of time.monotonic, is stopped, and has failed. Returns itself."""
        if self.said:
            return self
        started, environment = time.monotonic(), {**os.environ, **SETTINGS, **self.environment}
        LOGS.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w") as log:
            told = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            try:
                left = max(0.0, until - started)
                done = subprocess.run(self.command, cwd=ROOT, env=environment, timeout=left, **told)
                passed, self.said = done.returncode == 0, last_line(self.log)
            except subprocess.TimeoutExpired:
                passed, self.said = False, "stopped: no time is left"
        self.seconds, self.ended = time.monotonic() - started, "passed" if passed else "FAILED"
        return self


def last_line(log):
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip("= ")[:120] if lines else ""


def python(*arguments):
    return (sys.executable, *map(str, arguments))


def found():
    """What card is here, in one sentence. Raises NoLibraryError with the reason if there is none."""
    from bert4keras_rwkv.ops.kernels import cuda

    card, compiler = cuda.device(), cuda.compiler()
    return (
        f"{card.name}, sm_{card.architecture}, a driver for CUDA {card.driver // 1000}.{card.driver % 1000 // 10}; "
        f"NVRTC {compiler} ({compiler.path})."
    )


def sees_card(backend):
    """Whether a backend puts its arrays on the card; else why not."""
    environment = {**os.environ, **SETTINGS, "KERAS_BACKEND": backend}
    done = subprocess.run(python("-c", WHERE), cwd=ROOT, env=environment, capture_output=True, text=True)
    where = done.stdout.split()[-1:] or [done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no answer"]
    return where == ["cuda"], where[0]


def steps(backends, sanitizer):
    """All, the longest first. sanitizer: the path of compute-sanitizer, or None."""
    for backend in backends:
        here, on = {"KERAS_BACKEND": backend}, (*PYTEST, *WARN, "--backend-free=skip")
        yield Step(f"check {backend}", python(*CHECK, "--backend", backend), here)
        for part in PARTS:
            yield Step(f"kernels {part} {backend}", python(*on, "-k", part, "tests/ops/kernels"), here)
        for version in LAWFUL[backend]:
            chosen = "-k", f"[{version}- or [{version}]", "tests/models/test_laws.py"
            yield Step(f"laws {version} {backend}", python(*on, *chosen), here)
        yield Step(f"state tuning {backend}", python(*on, "tests/models/test_state_tuning.py"), here)
    without = {"KERAS_BACKEND": "numpy"}
    compiles = "--backend-free=only", "tests/ops/kernels/test_nvrtc.py"
    yield Step("nvrtc", python(*PYTEST, *WARN, *compiles), without)
    missing = "" if sanitizer else "no compute-sanitizer on the path; CUDA's toolkit has it"
    for tool in TOOLS:
        options = "--tool", tool, "--error-exitcode", "9"
        yield Step(f"sanitizer {tool}", (str(sanitizer), *options, *python(*EVERY_KERNEL)), without, said=missing)


def line(step):
    return f"  {step.ended:8}{step.name:20}  {step.seconds:4.0f} s  {step.said}"


def counted(done, took):
    counts = {end: sum(step.ended == end for step in done) for end in ("passed", "FAILED", "skipped")}
    return ", ".join(f"{count} {end}" for end, count in counts.items() if count) + f", in {took / 60:.1f} minutes."


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.5, help="what is not done by then is stopped (9.5)")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count()), help="processes at a time")
    options = parser.parse_args(argv)
    started = time.monotonic()
    until = started + 60 * options.minutes
    sys.path.insert(0, str(ROOT))
    try:
        print(f"The card: {found()}", flush=True)
    except Exception as error:
        print(f"No kernel of a GPU can run here: {error}", file=sys.stderr)
        return 1
    seen, done = [], []
    for backend, package in BACKENDS.items():
        on_card, where = sees_card(backend)
        if on_card:
            seen.append(backend)
        else:
            done.append(Step(f"all of {backend}", said=f"it does not see the card ({where}): install {package}"))
            print(line(done[-1]), flush=True)
    if not seen:
        print("No backend sees the card.")
        return 1
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(step.run, until) for step in steps(seen, shutil.which("compute-sanitizer"))]
        for future in as_completed(running):
            done.append(future.result())
            print(line(done[-1]), flush=True)
    print(counted(done, time.monotonic() - started))
    failed = [step for step in done if step.ended == "FAILED"]
    for step in failed:
        end = step.log.read_text(errors="replace").splitlines()[-40:]
        print(f"\n== {step.name}: the end of {step.log}", *end, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
