"""What was measured on a GPU as sections of the page, and the goals."""

import math
from statistics import median

from .checkpoints import HEAD, VOCABULARY, Size, shapes, shapes7
from .gpu import BACKENDS, BORROWED, RWKV, SIZES, borrowed
from .tables import milliseconds, spread, table


def parameters(version, size):
    """Those that every token passes through, and those of the head."""
    counts = {name: math.prod(shape) for name, shape, *_ in {"6": shapes, "7": shapes7}[version](size)}
    head = counts.pop("head.weight")
    return sum(counts.values()) - counts["emb.weight"], head


def operations(command, version, size, amounts):
    """Of the products in one sample: two for a parameter and token, and twice that again for its gradients."""
    blocks, head = parameters(version, size)
    word, count, *_ = command.split()
    if word == "train":
        return 6 * (blocks + head) * math.prod(map(int, amounts["train"].split("x"))) * int(count)
    return 2 * (blocks * int(count) + head)


def moved(command, version, size):
    """Bytes of a sample of decoding: weights in bfloat16, and each row's state, read and written in float32."""
    _, count, rows = command.split()
    state = size.layers * size.width * HEAD * 4
    return int(count) * (2 * sum(parameters(version, size)) + 2 * int(rows) * state)


def share(name, group, label, command):
    """What a program reaches of what was measured on the card: of its bandwidth when decoding, else of its products."""
    version, size = name.split()[1][-1], Size.parse(name.split()[2])
    here, seconds = group.facts["here"], group.seconds(label, command)
    if not here["limits"]:
        return None
    if command.startswith("decode"):
        return median(moved(command, version, size) / s for s in seconds) / here["limits"]["bandwidth"]
    return median(operations(command, version, size, here["amounts"]) / s for s in seconds) / here["limits"]["rate"]


def of(part):
    return "" if part is None else f"{part:.0%}"


def page(groups):
    """The sections about GPUs: of each run the card, then each model."""
    told = None
    for name, group in groups.items():
        if name == "gpu":
            continue
        if group.facts["here"] != told:
            told = group.facts["here"]
            yield card_page(told, group)
        yield model_page(name, group)


def card_page(here, group):
    """What was measured on which card, and how."""
    limits, can = here["limits"], "What the card can do was not measured"
    if limits:
        can = f"It copies {limits['bandwidth'] / 1e12:.3g} TB/s, read and written, and multiplies bfloat16 matrices of "
        can += f"{here['amounts']['product']} rows at {limits['rate'] / 1e12:.3g} TFLOP/s, measured in the same run"
    names = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    rounds = f"Medians of {group.rounds()}. " if group.series else ""
    return f"""## On a GPU: {here["card"]}

{names}. {can}: shares are of this.
{rounds}Programs are measured one after another, each alone on the card. Where the kernel of another
package is named the model is ours, and only the recurrence of several tokens is the other's. A training step is
forward, backward and AdamW, computed in bfloat16 with weights in float32; what is read has weights in bfloat16.
Decoding is greedy, and its tokens are those of all rows; the `rwkv` package has one.
"""


def model_page(name, group):
    _, version, size = name.split()
    amounts = group.facts["here"]["amounts"]
    blocks, head = parameters(version[-1], Size.parse(size))
    title = f"### {version.replace('rwkv', 'RWKV-')} {size}, {VOCABULARY:,} ids ({(blocks + 2 * head) / 1e9:.1f}B)"
    parts = [title, training_table(name, group, amounts), reading_table(name, group, amounts)]
    if group.facts["left out"]:
        parts.append(f"There was no time for {', '.join(group.facts['left out'])}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def training_table(name, group, amounts):
    """'' if nothing was trained."""
    rows = []
    for command in group.commands("train"):
        tokens = math.prod(map(int, amounts["train"].split("x")))
        for label in group.labels(command):
            each = [s / int(command.split()[1]) for s in group.seconds(label, command)]
            rate = spread([tokens / s for s in each])
            rows.append([label, milliseconds(each), rate, of(share(name, group, label, command))])
    rows += [[label, why, "", ""] for label, why in group.facts["absent"].get("train", {}).items()]
    head = ["training", f"a step of {amounts['train']} (ms)", "tokens/s", "of the products"]
    return table(head, rows) if rows else ""


def reading_table(name, group, amounts):
    """'' if nothing was read. Tokens a second are those of all rows together."""
    commands = [*group.commands("prefill"), *group.commands("decode")]
    labels = dict.fromkeys(label for command in commands for label in group.labels(command))
    rows = [[label, *(cell(name, group, label, command) for command in commands)] for label in labels]
    absent = group.facts["absent"].get("prefill", {}) if commands else {}
    rows += [[label, why, *[""] * (len(commands) - 1)] for label, why in absent.items()]
    return table(["tokens/s", *map(heading, commands)], rows) if rows else ""


def heading(command):
    word, count, *rows = command.split()
    if rows:
        return f"decode, {rows[0]} {'row' if rows[0] == '1' else 'rows'}"
    return f"{word} {count}"


def cell(name, group, label, command):
    if (label, command) not in group.series:
        return ""
    rows = int((command.split() + ["1"])[2])
    rate = spread([rows * rate for rate in group.rates(label, command)])
    return f"{rate}, {of(share(name, group, label, command))}"


def targets(name, group):
    """(what, wanted, measured, reached) of one model."""
    version, size = name.split()[1:]
    what = f"GPU, {version} {size}"
    for command in group.commands("train") if size == SIZES[0] else []:
        for package, (_, served) in BORROWED.items():
            for backend in served:
                pair = f"ours {backend}", borrowed(backend, package)
                if all((label, command) in group.series for label in pair):
                    faster = group.times_faster(*pair, command)
                    yield f"{what}, training step, {backend}", f"1.1 x {package}", f"{faster:.2f} x", faster >= 1.1
    for command in group.commands("prefill"):
        others = [label for label in group.labels(command) if "kernel" in label]
        if (ours := best(group, command)) and others:
            other = max(others, key=lambda label: median(group.rates(label, command)))
            faster = group.times_faster(ours, other, command)
            yield f"{what}, {command}, {ours}", f"1.1 x {other}", f"{faster:.2f} x", faster >= 1.1
    for command in group.commands("decode"):
        rows = int(command.split()[2])
        if rows not in (1, 64) or not (ours := best(group, command)):
            continue
        reached = share(name, group, ours, command)
        if reached is not None:
            yield f"{what}, {heading(command)}, {ours}", "70% of the bandwidth", of(reached), reached >= 0.7
        alone = f"{command.rsplit(' ', 1)[0]} 1"
        if (RWKV, alone) in group.series:
            faster = rows * group.times_faster(ours, RWKV, command, alone)
            yield f"{what}, {heading(command)}, {ours}", f"1.2 x {RWKV}", f"{faster:.2f} x", faster >= 1.2


def best(group, command):
    """The faster of ours on JAX and PyTorch."""
    ours = [f"ours {backend}" for backend in BACKENDS if (f"ours {backend}", command) in group.series]
    return max(ours, key=lambda label: median(group.rates(label, command)), default=None)
