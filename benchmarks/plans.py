"""What is measured: which workers run in which group, and what they are asked."""

import itertools
import sys

from . import peer_sampling, peer_wkv
from .chat import chat
from .checkpoints import Size, checkpoint
from .conversion import conversion
from .gpu import gpu
from .quantised import quantised
from .rounds import Worker, interleave
from .serving import group_name, serving
from .start import SHIPPED, start
from .training import training

USUAL = ["model", "wkv", "sampling", "convert"]  # what `make bench` measures
GROUPS = [*USUAL, "train", "start", "quantised", "chat", "serving", "gpu"]
PROMPT, DECODE = 512, 32


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure(options):
    """Yield (name, group) for each group asked for: its Series, and facts about the workers."""
    for text in options.sizes if "model" in options.only else []:
        yield f"model {text}", model(Size.parse(text), options)
    if "wkv" in options.only:
        yield "wkv", wkv(options)
    if "sampling" in options.only:
        yield "sampling", sampling(options)
    if "convert" in options.only:
        yield "convert", conversion(options, say)
    if "start" in options.only:
        yield "start", start(options, say)
    for version in ("7", "6") if "train" in options.only else []:
        yield f"train rwkv{version}", training(version, options, say)
    for text in options.sizes if "quantised" in options.only else []:
        for version in options.versions:
            yield f"quantised rwkv{version} {text}", quantised(version, text, options, say)
    for text in options.sizes if "chat" in options.only else []:
        yield f"chat {text}", chat(text, options, say)
    if "serving" in options.only:
        yield group_name(SHIPPED, None), serving(SHIPPED, None, options, say)
        for version, text in itertools.product(options.versions, options.sizes):
            yield group_name(text, version), serving(text, version, options, say)
    if "gpu" in options.only:
        yield from gpu(options, say)


def model_workers(size, options):
    """(label, module, arguments, environment, commands) of every program that runs the language model."""
    path = checkpoint(size, options.cache)
    shared = [f"prefill {PROMPT}", f"decode {DECODE}"]
    for precision in ("fp32", "bf16"):
        yield f"rwkv {precision}", "peer_rwkv", [path, f"cpu {precision}", options.threads], {}, shared
    for backend in options.backends:
        commands = shared + [f"stream {DECODE}", f"loop {DECODE}"]
        yield f"ours {backend} fp32", "ours", [path, "float32"], {"KERAS_BACKEND": backend}, commands
        pure = {"KERAS_BACKEND": backend, "OPS_KERNEL": "1"}
        yield f"ours {backend} fp32, pure ops", "ours", [path, "float32"], pure, shared


def model(size, options):
    """Prefill and decode of one model size, load time and memory, with the machine's limits in the same rounds."""
    starts = {}
    for number in range(options.starts - 1):
        for specification in model_workers(size, options):
            say(f"  {size} start {number + 1}/{options.starts}: {specification[0]}")
            worker = Worker(*specification)
            starts.setdefault(worker.label, []).append({**worker.facts, "peak_mb": worker.close()})
    workers = [Worker(*specification) for specification in model_workers(size, options)]
    difference = check(workers)
    shapes = [f"{PROMPT // 2} {size.width} {size.inner}"]
    commands = ["read 4"] + [f"{kind} {shape}" for shape in shapes for kind in ("gemm", "gemm16")]
    limits = Worker("limits", "limits", [options.threads], {}, commands)
    series = interleave(f"model {size}", [limits, *workers], options.rounds, options.wait, say)
    limits.close()
    for worker in workers:
        starts.setdefault(worker.label, []).append({**worker.facts, "peak_mb": worker.close()})
    facts = {
        "block_parameters": size.block_parameters,
        "head_parameters": size.head_parameters,
        "prompt": PROMPT,
        "largest_difference": difference,
    }
    return {"series": series, "starts": starts, "facts": facts}


def check(workers):
    """No timing without agreement: the float32 programs give the same logits, to 1e-2 of the largest.

    It is not less because the `rwkv` package normalises the embedding before it leaves the file's bfloat16, which
    alone costs 2e-3. Returns the largest difference seen, as a share of the largest logit.
    """
    answers = {worker.label: worker.ask("check 300")["logits"] for worker in workers if "fp32" in worker.label}
    reference, *others = answers
    scale = max(map(abs, answers[reference]))
    worst = 0.0
    for label in others:
        error = max(abs(a - b) for a, b in zip(answers[label], answers[reference], strict=True)) / scale
        if not error < 1e-2:
            raise RuntimeError(
                f"'{label}' and '{reference}' differ by {error:.1e} of the largest logit: nothing measured."
            )
        worst = max(worst, error)
    return worst


def wkv(options):
    """The recurrence alone on every backend."""
    pure = [f"{form}_{what}" for form in ("loop", "ops") for what in ("forward", "both")]
    native = [*pure, "native_forward", "native_both"]
    asked = [("6", "jax", [*native, "written_both"]), ("7", "jax", native), ("4", "jax", native)]
    asked += [(version, "torch", native) for version in "674"] + [("6", "tensorflow", pure)]
    workers = [
        Worker(f"wkv{version} {backend}", "peer_wkv", [version], {"KERAS_BACKEND": backend}, wanted)
        for version, backend, wanted in asked
    ]
    series = interleave("wkv", workers, options.rounds, options.wait, say)
    for worker in workers:
        worker.close()
    return {"series": series, "facts": {name: getattr(peer_wkv, name) for name in "BTHN"}}


def sampling(options):
    """Drawing a token from logits: see peer_sampling."""
    commands = [f"{name}_{kind}" for kind in ("peaked", "flat") for name in peer_sampling.SAMPLERS]
    workers = [
        Worker(backend, "peer_sampling", [], {"KERAS_BACKEND": backend}, commands)
        for backend in ("jax", "tensorflow", "torch")
    ]
    series = interleave("sampling", workers, options.rounds, options.wait, say)
    for worker in workers:
        worker.close()
    return {"series": series}
