"""Matrices in fewer bytes: a model in every precision, ours, of rwkv and of llama.cpp, and its section of the page."""

import subprocess
import sys
from statistics import median

from .checkpoints import Size, checkpoint
from .rounds import Worker, interleave
from .tables import spread, table

PROMPTS, DECODE, TEXTS = (512, 2048), 32, (8, 32)
LARGEST_FLOAT = 1_000_000_000  # parameters of which float32 models of several programs are held side by side
# Bits of a number of a matrix: ours have a scale of 16 bits for 32 numbers, and int4 a least value, too.
BITS = {"fp32": 32, "F32": 32, "bf16": 16, "BF16": 16, "int8": 8.5, "Q8_0": 8.5, "int4": 5, "Q4_0": 4.5, "Q4_K_M": 4.85}
OURS = {
    "fp32": "float32",
    "bf16": "float32+bfloat16",
    "bf16 all": "bfloat16+bfloat16",
    "int8": "float32+int8",
    "int4": "float32+int4",
}
AGAINST = {"fp32": ("F32",), "bf16": ("BF16",), "int8": ("Q8_0",), "int4": ("Q4_0", "Q4_K_M")}
WANTED = {"F32": 1.0, "BF16": 1.0, "Q8_0": 1.05, "Q4_0": 1.0, "Q4_K_M": 1.0}
OF_RWKV = {"fp32": 2.0, "bf16": 2.2}
RWKV_7 = {"7": {"RWKV_V7_ON": "1"}, "6": {}}  # how the `rwkv` package is told
K_TYPES = {"Q4_K_M": 15}  # as llama.h numbers them


def parameters(size):
    return size.block_parameters + 2 * size.head_parameters


def gguf(path, kind, options, source=None):
    """The GGUF file of a checkpoint, written by our converter if it is not there; K types by llama.cpp's own.

    source: what is converted, if not the file `path`.
    """
    target = path.with_name(f"{path.stem}-{kind}.gguf")
    if target.exists():
        return target
    if kind in K_TYPES:
        program = (
            "import sys, llama_cpp as l; p = l.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3]); "
            "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
        )
        given = [gguf(path, "F32", options), target.with_suffix(".part"), K_TYPES[kind]]
        subprocess.run([options.llama_cpp, "-c", program, *map(str, given)], check=True, capture_output=True)
        target.with_suffix(".part").rename(target)
        return target
    dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(kind, kind.lower())
    command = [sys.executable, "-m", "bert4keras_rwkv", "convert", source or path, target, "--dtype", dtype]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    return target


def workers(version, size, options):
    """(label, module, arguments, environment, commands, python) of every program."""
    path, is_small = checkpoint(size, options.cache, version), parameters(size) < LARGEST_FLOAT
    prefills, texts = ((), ()) if options.brief else (PROMPTS, TEXTS)
    shared = [*(f"prefill {length}" for length in prefills), f"decode {DECODE}"]
    batched = [f"texts {DECODE * count} {count}" for count in texts]
    for name in ("fp32", "bf16") if is_small else ("bf16",):
        given = [path, f"cpu {name}", options.threads]
        yield f"rwkv {name}", "peer_rwkv", given, RWKV_7[version], shared, sys.executable
    for kind in ("F32", "BF16", "Q8_0", "Q4_0", "Q4_K_M") if options.llama_cpp else ():
        if kind != "F32" or is_small:
            commands = shared + (batched if kind in ("BF16", "Q8_0") else [])
            given = [gguf(path, kind, options), options.threads]
            yield f"llama.cpp {kind}", "peer_llama_cpp", given, {}, commands, options.llama_cpp
    for name, numbers in OURS.items():
        if (name != "fp32" or is_small) and not (options.brief and name == "bf16 all"):
            commands = [*shared, f"loop {DECODE}", *(batched if name != "fp32" else [])]
            yield f"ours {name}", "ours", [path, numbers], {"KERAS_BACKEND": "jax"}, commands, sys.executable
    if not options.brief:
        yield "ours torch int8", "ours", [path, OURS["int8"]], {"KERAS_BACKEND": "torch"}, shared, sys.executable


def quantised(version, text, options, say):
    """Prefill, decode and decode of several texts, with the machine's limits in the same rounds."""
    size = Size.parse(text)
    started = []
    for label, module, arguments, environment, commands, python in workers(version, size, options):
        say(f"  rwkv{version} {size}: {label} starts")
        started.append(Worker(label, module, arguments, environment, commands, python))
    shape = f"{PROMPTS[0] // 2} {size.width} {size.inner}"
    limits = Worker("limits", "limits", [options.threads], {}, ["read 4", f"gemm {shape}", f"gemm16 {shape}"])
    name = f"quantised rwkv{version} {size}"
    series = interleave(name, [limits, *started], options.rounds, options.wait, say)
    limits.close()
    starts = {worker.label: [{**worker.facts, "peak_mb": worker.close()}] for worker in started}
    facts = {"matrices": size.block_parameters + size.head_parameters, "parameters": parameters(size)}
    return {"series": series, "starts": starts, "facts": facts}


def share(group, label):
    """Share of the memory bandwidth that decoding reaches, as if all that is read were matrices."""
    (command,), (read,) = group.commands("decode"), group.commands("read")
    held = group.facts["matrices"] * BITS[label.replace(" all", "").split()[-1]] / 8
    limit = [int(read.split()[1]) * 2**30 / s for s in group.seconds("limits", read)]
    return median(rate * held / best for rate, best in zip(group.rates(label, command), limit, strict=True))


def page(name, group):
    """The section about one model."""
    prefills, (decode,), texts = (group.commands(what) for what in ("prefill", "decode", "texts"))
    rows = []
    for label in group.labels(decode):
        row = [label, spread(group.rates(label, decode), 1), f"{share(group, label):.0%}"]
        row += [
            spread(group.rates(label, one), 0) if (label, one) in group.series else "" for one in (*texts, *prefills)
        ]
        start = group.starts[label][0]
        rows.append([*row, f"{start['start_s']:.1f}", f"{start['load_peak_mb']:.0f}", f"{start['peak_mb']:.0f}"])
    columns = [
        "program",
        "decode (tokens/s)",
        "of the bandwidth",
        *(f"{one.split()[2]} texts at once" for one in texts),
    ]
    columns += [f"prefill of {one.split()[1]}" for one in prefills]
    columns += ["start to 5 tokens (s)", "most memory, loading (MB)", "most memory, all (MB)"]
    (read,) = group.commands("read")
    bandwidth = [int(read.split()[1]) * 2**30 / s / 1e9 for s in group.seconds("limits", read)]
    model = name.removeprefix("quantised ").replace("rwkv", "RWKV-")
    return f"""## {model}, {group.facts["parameters"] / 1e6:.0f} million parameters, in fewer bytes

All in tokens a second, of all texts together. `ours bf16` stores matrices in bfloat16 and computes in float32,
`ours bf16 all` computes in bfloat16, too. Memory read in the same rounds: {spread(bandwidth, 1)} GB/s.

{table(columns, rows)}
"""


def targets(name, group):
    """(what, wanted, measured, reached) for the goals of one model."""
    short = name.removeprefix("quantised ")
    return [
        (f"{short} {what}, {ours}", f"{wanted} x {other}", f"{found:.2f} x", found >= wanted)
        for what, ours, other, wanted in _pairs(group)
        if (found := _times_faster(group, what, ours, other)) is not None
    ]


def _pairs(group):
    """(what, ours, the other program, how many times faster ours should be)."""
    for ours, others in AGAINST.items():
        yield from (("decode", f"ours {ours}", f"llama.cpp {kind}", WANTED[kind]) for kind in others)
    yield from (("decode", f"ours {name}", f"rwkv {name}", wanted) for name, wanted in OF_RWKV.items())
    yield "decode", "ours torch int8", "ours int8", 0.8
    for command in group.commands("texts"):
        yield command, "ours bf16", "llama.cpp BF16", 1.2
        yield command, "ours int8", "llama.cpp Q8_0", 1.2
    for prefill in group.commands("prefill"):
        labels = [label for label in group.labels(prefill) if "torch" not in label]
        own = [label for label in labels if label.startswith("ours")]
        best = [max(some, key=lambda x: median(group.rates(x, prefill))) for some in (own, sorted({*labels} - {*own}))]
        yield prefill, *best, 1.2


def _times_faster(group, what, ours, other):
    """None where one of them was not measured."""
    (command,) = group.commands(what) if what == "decode" else [what]
    there = {(ours, command), (other, command)} <= set(group.series)
    return group.times_faster(ours, other, command) if there else None
