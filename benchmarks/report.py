"""docs/benchmarks.md and its plot, made from the measurements in docs/benchmarks.json."""

from statistics import median

from . import chat, gpu_page, quantised, serving, start, training
from .tables import Group, milliseconds, spread, table

FLOAT_BYTES = 4


def limits(group):
    """Memory read (bytes a second), float32 and bfloat16 products (operations a second), each round by round."""
    (read,) = group.commands("read")
    answer = [[int(read.split()[1]) * 2**30 / s for s in group.seconds("limits", read)]]
    for kind in ("gemm", "gemm16"):
        (command,) = group.commands(kind)
        m, k, n = map(int, command.split()[1:])
        answer.append([2 * m * k * n / s for s in group.seconds("limits", command)])
    return answer


def decode_share(group, label, command):
    """Share of the memory bandwidth that decoding reaches: every weight is read once a token."""
    size = FLOAT_BYTES if "fp32" in label else FLOAT_BYTES // 2
    bytes_a_token = size * (group.facts["block_parameters"] + group.facts["head_parameters"])
    return median(
        r * bytes_a_token / limit for r, limit in zip(group.rates(label, command), limits(group)[0], strict=True)
    )


def prefill_share(group, label, command):
    """Share of the rate of matrix products that prefill reaches: two operations a parameter and token."""
    operations = 2 * (group.facts["block_parameters"] + group.facts["head_parameters"] / group.facts["prompt"])
    limit = limits(group)[1 if "fp32" in label else 2]
    return median(r * operations / best for r, best in zip(group.rates(label, command), limit, strict=True))


RATES = (
    "program",
    "prefill (tokens/s)",
    "x rwkv fp32",
    "of the products",
    "decode (tokens/s)",
    "x rwkv fp32",
    "of the bandwidth",
)
STARTS = (
    "program",
    "load the file (s)",
    "from start to 5 tokens (s)",
    "most memory, loading (MB)",
    "most memory, all (MB)",
)


def model_page(name, group):
    """The section about one model size."""
    (prefill,), (decode,) = group.commands("prefill"), group.commands("decode")
    rates = table(RATES, [rates_of(group, label, prefill, decode) for label in group.labels(decode)])
    starts = table(STARTS, [starts_of(label, group.starts[label]) for label in group.starts])
    read, gemm, gemm16 = ([value / 1e9 for value in values] for values in limits(group))
    parameters = group.facts["block_parameters"] + 2 * group.facts["head_parameters"]
    return f"""## {name.capitalize()}, 65,536 ids ({parameters / 1e6:.0f} million parameters), batch 1

A prompt of {prefill.split()[1]} tokens, then {decode.split()[1]} tokens one by one, greedy.

{rates}

The machine in the same rounds: {spread(read, 1)} GB/s read from memory,
{spread(gemm)} GFLOP/s in float32 and {spread(gemm16)} in bfloat16 products: what PyTorch reaches
in one product of the model's shape, not the processor's peak.
Largest difference of logits between the float32 programs: {group.facts["largest_difference"]:.0e} of the largest logit
(the `rwkv` package rounds the normalised embedding to the file's bfloat16).

{starts}
"""


def rates_of(group, label, prefill, decode):
    """A row of RATES."""
    return [
        label,
        spread(group.rates(label, prefill)),
        f"{group.times_faster(label, 'rwkv fp32', prefill):.2f}",
        f"{prefill_share(group, label, prefill):.0%}",
        spread(group.rates(label, decode), 1),
        f"{group.times_faster(label, 'rwkv fp32', decode):.2f}",
        f"{decode_share(group, label, decode):.0%}",
    ]


def starts_of(label, starts):
    """A row of STARTS."""
    keys = (("load_s", 1), ("start_s", 1), ("load_peak_mb", 0), ("peak_mb", 0))
    return [label, *(spread([start[key] for start in starts], digits) for key, digits in keys)]


WAYS = {
    "decode": "`RWKV.prefill` of one token: one compiled step a token",
    "stream": "`RWKV.stream`: one compiled step a token, the choice of the token included",
    "loop": "`RWKV.generate`, `build_cache_model`: the whole loop in one compiled program",
}


def ways_page(models):
    """The section about the ways to decode."""
    rows = []
    for name, group in models.items():
        for label, command in group.series:
            if label.startswith("ours") and not label.endswith("pure ops") and command.split()[0] in WAYS:
                rows.append(
                    [
                        f"{name.split()[1]}, {label.split()[1]}: {WAYS[command.split()[0]]}",
                        spread(group.rates(label, command), 1),
                        f"{decode_share(group, label, command):.0%}",
                    ]
                )
    return "## Ways to decode\n\n" + table(["", "tokens/s", "of the bandwidth"], rows) + "\n"


WRITTEN = ("wkv6 jax", "written_both")


def wkv_page(group):
    """The section about the recurrence alone."""
    rows = []
    for label in group.labels("loop_both"):
        for what, means in (("forward", "forward"), ("both", "forward and backward")):
            loop, pure, native = (f"{form}_{what}" for form in ("loop", "ops", "native"))
            row = [f"{label}, {means}", *(milliseconds(group.seconds(label, one)) for one in (loop, pure))]
            if (label, native) in group.series:
                faster = f"{group.times_faster(label, label, native, pure):.1f}"
                rows.append([*row, milliseconds(group.seconds(label, native)), faster])
            else:
                rows.append([*row, "", ""])
    shape = ", ".join(f"{name} {value}" for name, value in group.facts.items())
    columns = ["", "loop (ms)", "pure ops (ms)", "native (ms)", "x pure ops"]
    page = f"## The recurrence alone ({shape})\n\n{table(columns, rows)}\n"
    if WRITTEN in group.series:
        page += f"""
Our loop forms the outer product of key and value once. RWKV-6's equation, computed term by term as in the paper,
takes {milliseconds(group.seconds(*WRITTEN))} ms forward and backward on JAX.
"""
    return page


SAMPLERS = {
    "greedy": "greedy",
    "all": "all tokens",
    "top_k": "top-k 40",
    "top_p": "top-p 0.85",
    "top_p_k": "top-p 0.7 of top-k 40",
}


def sampling_page(group):
    """The section about drawing a token."""
    backends = list(dict.fromkeys(label for label, _ in group.series))
    rows = [
        [f"{means}, {kind}", *(milliseconds(group.seconds(backend, f"{name}_{kind}")) for backend in backends)]
        for kind in ("peaked", "flat")
        for name, means in SAMPLERS.items()
    ]
    return f"""## Choosing the next token: 65,536 ids, 16 rows (ms a step)

Peaked logits are like a trained model's, where a few tokens hold most of the probability; flat ones like an untrained
model's, where top-p must keep thousands.

{table(["", *backends], rows)}
"""


def conversion_page(group):
    """The section about converting."""
    rows = [
        [
            name,
            *(spread([each[key] for each in measured], digits) for key, digits in (("seconds", 1), ("peak_mb", 0))),
            f"{measured[0]['written_mb']:.0f}",
        ]
        for name, measured in group.facts["rows"].items()
    ]
    head = ["from a bfloat16 `.pth` to", "seconds", "most memory (MB)", "written (MB)"]
    return f"""## Converting one layer of a 7B model's width ({group.facts["stored_mb"]:.0f} MB)

{table(head, rows)}
"""


def targets(groups):
    """(what, wanted, measured, reached) for the goals that the project has set itself."""
    for name, group in groups.items():
        if name.startswith("model") and "ours jax fp32" in group.starts:
            (prefill,), (decode,) = group.commands("prefill"), group.commands("decode")
            ours = "ours jax fp32"
            size = name.split()[1]
            for way, means in ((group.commands("loop")[0], "`generate`"), (decode, "step by step")):
                faster = group.times_faster(ours, "rwkv fp32", way, decode)
                share = decode_share(group, ours, way)
                yield (
                    f"{size} decode, {means}",
                    "1.9 x rwkv fp32, or 85% of the bandwidth",
                    f"{faster:.2f} x, {share:.0%}",
                    faster >= 1.9 or share >= 0.85,
                )
            faster = group.times_faster(ours, "rwkv fp32", prefill)
            yield f"{size} prefill", "2 x rwkv fp32", f"{faster:.2f} x", faster >= 2
            pure = f"{ours}, pure ops"
            if pure in group.starts:
                faster = group.times_faster(ours, pure, prefill)
                yield f"{size} prefill", "1.15 x pure ops", f"{faster:.2f} x", faster >= 1.15
            if size == "12x768":
                faster = group.times_faster(ours, "rwkv bf16", prefill)
                yield f"{size} prefill", "0.9 x rwkv bf16", f"{faster:.2f} x", faster >= 0.9
        if name == "wkv":
            yield from native_targets(group)
            for loop, means in (("loop_both", "our loop"), ("written_both", "the equation as written")):
                if ("wkv6 jax", loop) not in group.series:
                    continue
                faster = group.times_faster("wkv6 jax", "wkv6 jax", "ops_both", loop)
                yield "RWKV-6 in pure ops, forward and backward", f"6 x {means}", f"{faster:.1f} x", faster >= 6
        if name == "start":
            yield from start.targets(group)
        if name.startswith("train"):
            yield from training.targets(name, group)
        if name.startswith("quantised"):
            yield from quantised.targets(name, group)
        if name.startswith("chat"):
            yield from chat.targets(name, group)
        if name.startswith("serving"):
            yield from serving.targets(name, group)
        if name.startswith("gpu "):
            yield from gpu_page.targets(name, group)
        if name == "sampling":
            for kind in ("peaked", "flat"):
                drawn = group.seconds("jax", f"top_p_{kind}")
                more = median(1e3 * (a - b) for a, b in zip(drawn, group.seconds("jax", f"greedy_{kind}"), strict=True))
                yield f"top-p 0.85, {kind} logits", "at most 4 ms a step more than greedy", f"{more:.1f} ms", more <= 4


# How often faster than pure ops, or for RWKV-4 than the loop, which is the same there: forward, and with backward.
NATIVE = {"jax": {"6": (4, 3), "7": (4, 3), "4": (None, 2)}, "torch": {"6": (8, 6), "7": (8, 6), "4": (None, 5)}}


def native_targets(group):
    """The goals of the native kernels."""
    for backend, goals in NATIVE.items():
        for version, pair in goals.items():
            label = f"wkv{version} {backend}"
            for goal, what, means in zip(pair, ("forward", "both"), ("forward", "forward and backward"), strict=True):
                if goal is not None and (label, f"native_{what}") in group.series:
                    faster = group.times_faster(label, label, f"native_{what}", f"ops_{what}")
                    yield f"{label}, {means}, native", f"{goal} x pure ops", f"{faster:.1f} x", faster >= goal


def processors(groups):
    """Which processor measured which groups."""
    found = {}
    for name, group in groups.items():
        if "processor" in group:
            found.setdefault(group["processor"], []).append(name)
    return "; ".join(f"{processor}: {', '.join(names)}" for processor, names in found.items())


def page(results):
    """The whole page as text."""
    groups = {name: Group(group) for name, group in results["groups"].items()}
    models = {name: group for name, group in groups.items() if name.startswith("model")}
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    on_gpu = {name: group for name, group in groups.items() if name.startswith("gpu")}
    timed = {name: group for name, group in groups.items() if group.series and name not in on_gpu}
    busy = ", ".join(f"{group.foreign():.0%} ({name})" for name, group in timed.items())
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(group.command for group in groups.values()))
    rounds = " or ".join(str(number) for number in sorted({group.rounds() for group in timed.values()}))
    parts = [
        f"""# Benchmarks

Made by `make bench`; this page, its plot and [benchmarks.json](benchmarks.json) are written by the program in
`benchmarks/`. Measured by {commands}.

{machine["threads"]} threads for every program, {machine["system"]}, Python {machine["python"]}.
{processors(results["groups"])}.
{versions}.

How it is measured: every program runs in a process of its own and is asked in turn, one command at a time, for
{rounds} rounds; numbers are medians, with the least and the most in brackets. Quotients are taken within a
round, and their median is given, since the speed of a machine drifts. Weights are random, of real shapes. Other
programs used this share of the processors meanwhile (median; 100% is one processor): {busy}.

![Tokens a second](benchmarks.png)

## Goals

"""
        + table(
            ["", "wanted", "measured", "reached"],
            [[what, wanted, got, "yes" if reached else "**no**"] for what, wanted, got, reached in targets(groups)],
        )
        + "\n"
    ]
    parts += [model_page(name, group) for name, group in models.items()]
    if models:
        parts.append(ways_page(models))
    parts += [quantised.page(name, group) for name, group in groups.items() if name.startswith("quantised")]
    if "wkv" in groups:
        parts.append(wkv_page(groups["wkv"]))
    if "sampling" in groups:
        parts.append(sampling_page(groups["sampling"]))
    parts += [training.page(name, group) for name, group in groups.items() if name.startswith("train")]
    if "start" in groups:
        parts.append(start.page(groups["start"]))
    parts += [chat.page(name, group) for name, group in groups.items() if name.startswith("chat")]
    parts += [serving.page(name, group) for name, group in groups.items() if name.startswith("serving")]
    if "convert" in groups:
        parts.append(conversion_page(groups["convert"]))
    if on_gpu:
        parts += gpu_page.page(on_gpu)
    return "\n".join(parts)


def plot(results, path):
    """Prefill and decode of each model size as bars, with the limits as lines."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    groups = {name: Group(group) for name, group in results["groups"].items() if name.startswith("model")}
    figure, axes = pyplot.subplots(2, max(1, len(groups)), figsize=(5 * max(1, len(groups)), 6), squeeze=False)
    for column, (name, group) in enumerate(groups.items()):
        for row, word in enumerate(("prefill", "decode")):
            (command,) = group.commands(word)
            labels, axis = group.labels(command), axes[row][column]
            rates = [group.rates(label, command) for label in labels]
            middle = [median(values) for values in rates]
            errors = [
                [m - min(values) for m, values in zip(middle, rates, strict=True)],
                [max(values) - m for m, values in zip(middle, rates, strict=True)],
            ]
            colours = ["#4c72b0" if label.startswith("ours") else "#bbbbbb" for label in labels]
            axis.bar(labels, middle, yerr=errors, color=colours, capsize=4)
            axis.set_title(f"{name.split()[1]}: {command}")
            axis.set_ylabel("tokens/s")
            if word == "decode":
                facts = group.facts
                weights = FLOAT_BYTES * (facts["block_parameters"] + facts["head_parameters"])
                axis.axhline(median(limits(group)[0]) / weights, color="black", linestyle="--", linewidth=1)
                axis.text(
                    0.01,
                    0.95,
                    "dashed: memory bandwidth, float32 weights",
                    transform=axis.transAxes,
                    va="top",
                    fontsize=8,
                )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(results, page_path, plot_path):
    """Write both files."""
    page_path.write_text(page(results), "utf-8")
    if any(name.startswith("model") for name in results["groups"]):
        plot(results, plot_path)
