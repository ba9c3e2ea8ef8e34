"""From the start of a process to its fifth token: the first time, with nothing kept, and after that."""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from .checkpoints import Size, checkpoint
from .quantised import gguf
from .rounds import wait_for_quiet
from .tables import spread, table

SHIPPED = "finch-jargon"
MOST = 1.3  # times the `rwkv` package's time
MOST_OF_LLAMA_CPP = 2.0  # times its time
MOST_SHIPPED = 2.5  # seconds
LLAMA_CPP = "llama.cpp F16"
IMPORT = "`import keras`, nothing else"
GENERATE = ["generate", "--prompt", "The", "--max-length", "6", "--mask-output", "0", "--model"]


def start(options, say):
    """Every program once with nothing kept, then round after round in turn.

    Facts: model -> program -> its starts, the first of them with empty caches.
    """
    models = {SHIPPED: SHIPPED}
    for version in sorted(options.versions):
        for text in options.sizes:
            models[f"RWKV-{version} {text}"] = str(checkpoint(Size.parse(text), options.cache, version))
    rows = {}
    for name, path in models.items():
        peers = {
            "ours, Python": ["-m", "benchmarks.peer_start", "ours", path],
            "ours, `generate`": ["-m", "bert4keras_rwkv", *GENERATE, path],
            yardstick(name): ["-c", "import keras"]
            if name == SHIPPED
            else ["-m", "benchmarks.peer_start", "rwkv", path],
        }
        if options.llama_cpp and name != SHIPPED:
            peers[LLAMA_CPP] = ["-m", "benchmarks.peer_start", "llama.cpp", gguf(Path(path), "F16", options)]
        rows[name] = {program: [] for program in peers}
        with tempfile.TemporaryDirectory() as caches:
            for number in range(options.rounds + 1):
                for program, arguments in peers.items():
                    wait_for_quiet(options.wait)
                    python = options.llama_cpp if program == LLAMA_CPP else sys.executable
                    rows[name][program].append(started(python, arguments, caches))
                    seconds = rows[name][program][-1]["seconds"]
                    say(f"  start round {number}/{options.rounds}: {name}, {program}: {seconds:.2f} s")
    return {"series": [], "facts": {"rows": rows}}


def started(python, arguments, caches):
    """One start: {'seconds'} to its fifth token, of a command to its end, and 'ends' and 'within' of `peer_start`."""
    own = {"XDG_CACHE_HOME": caches, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "START": str(time.time())}
    changed = ("BERT4KERAS_RWKV", "PYTHONDONTWRITEBYTECODE")  # as after an installation: modules are compiled once
    environment = {name: value for name, value in os.environ.items() if not name.startswith(changed)}
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, env=environment | own)
    seconds = time.time() - float(own["START"])
    if done.returncode:
        raise RuntimeError(f"It failed: {' '.join(arguments)}\n{done.stderr[-2000:]}")
    if "benchmarks.peer_start" not in arguments:
        return {"seconds": seconds}
    answer = json.loads(done.stdout)
    return {"seconds": answer["ends"]["fifth token"], **answer}


PHASES = ("imports", "loaded", "first token", "fifth token")
WITHIN = ("tokenizer", "programs read", "programs compiled")
HEAD = ("", "first start (s)", "after that (s)", "x the other", *PHASES, *(f"of it {name}" for name in WITHIN))


def page(group):
    """The section of the page."""
    return f"""## From the start of a process to its fifth token (s)

On {group.processor}.

A prompt of 8 tokens, then 5 tokens. The first start finds no compiled programs, those after that do; `generate` is
timed to the end of the command. The other program is the `rwkv` package; beside the shipped model, which that cannot
read, it is an empty program that imports Keras on JAX. The phases of later starts: how long each took, and what of it
went into the vocabulary, into reading executables and into tracing and compiling.

{table(HEAD, [row(name, program, group) for name, programs in rows(group).items() for program in programs])}
"""


def rows(group):
    return group.facts["rows"]


def yardstick(name):
    """The program that a model's starts are compared with."""
    return IMPORT if name == SHIPPED else "rwkv fp32"


def row(name, program, group):
    """A row of HEAD."""
    first, *then = rows(group)[name][program]
    cells = [f"{name}, {program}", f"{first['seconds']:.1f}", spread(seconds(then), 1), "", *[""] * 7]
    if program != yardstick(name):
        cells[3] = f"{quotient(name, program, group):.2f}"
    if "ends" in first:
        ends = [0, *(median(one["ends"][phase] for one in then) for phase in PHASES)]
        cells[4:8] = [f"{b - a:.1f}" for a, b in pairwise(ends)]
        cells[8:] = [f"{median(one['within'].get(part, 0) for one in then):.1f}" for part in WITHIN]
    return cells


def seconds(starts):
    return [one["seconds"] for one in starts]


def quotient(name, program, group, other=None):
    """The median over rounds of a program's time as a multiple of another's, without the first start."""
    peers = rows(group)[name]
    both = zip(seconds(peers[program])[1:], seconds(peers[other or yardstick(name)])[1:], strict=True)
    return median(mine / other for mine, other in both)


def targets(group):
    """As `report.targets`."""
    for name, programs in rows(group).items():
        for program in programs:
            if program in (yardstick(name), LLAMA_CPP):
                continue
            what = f"{name}, {program}: second start to the fifth token"
            times = quotient(name, program, group)
            if name == SHIPPED:
                took = median(seconds(programs[program])[1:])
                measured = f"{took:.1f} s ({times:.2f} x importing Keras)"
                yield what, f"at most {MOST_SHIPPED} s", measured, took <= MOST_SHIPPED
            else:
                yield what, f"at most {MOST} x rwkv fp32", f"{times:.2f} x", times <= MOST
            if LLAMA_CPP in programs and program != "ours, Python":
                times = quotient(name, program, group, LLAMA_CPP)
                yield what, f"at most {MOST_OF_LLAMA_CPP} x {LLAMA_CPP}", f"{times:.2f} x", times <= MOST_OF_LLAMA_CPP
