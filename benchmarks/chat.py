"""A conversation beside one by ChatRWKV's way: how soon a reply begins, and how fast it comes."""

import sys
from statistics import median

from .checkpoints import Size, checkpoint
from .rounds import Worker, interleave
from .tables import spread, table

TOKENS = 32
PROGRAMS = {
    "ours": ("ours", "auto", [f"stream {TOKENS}"]),
    "ChatRWKV's way, fp32": ("rwkv", "cpu fp32", []),
    "ChatRWKV's way, bf16": ("rwkv", "cpu bf16", []),
}
LATEST, SLOWEST = 1.3, 0.95


def chat(text, options, say):
    """One model. Facts: program -> seconds from its start to the first piece of a reply, of each start."""
    path = checkpoint(Size.parse(text), options.cache, "7")
    starts = {label: [] for label in PROGRAMS}
    for number in range(options.starts):
        workers = []
        for label, (program, numbers, more) in PROGRAMS.items():
            say(f"  chat {text} start {number + 1}/{options.starts}: {label}")
            commands = ["message 1", f"reply {TOKENS}", *more]
            jax = {"KERAS_BACKEND": "jax"}
            workers.append(Worker(label, "peer_chat", [program, path, numbers], jax, commands, sys.executable))
            starts[label].append(workers[-1].facts["first_s"])
            if number < options.starts - 1:
                workers[-1].close()
    series = interleave(f"chat {text}", workers, options.rounds, options.wait, say)
    for worker in workers:
        worker.close()
    return {"series": series, "facts": {"starts": starts}}


def page(name, group):
    """The section about one model."""
    (reply,), (message,) = group.commands("reply"), group.commands("message")
    rows = [
        [
            label,
            spread(seconds[1:], 1),
            spread(group.seconds(label, message), 3),
            spread(group.rates(label, reply), 1),
        ]
        for label, seconds in group.facts["starts"].items()
    ]
    (stream,) = group.commands("stream")
    rows.append(["ours, `RWKV.stream` without a chat", "", "", spread(group.rates("ours", stream), 1)])
    columns = ["", "from the start of the program to a reply (s)", "from a message to a reply (s)", "tokens a second"]
    return f"""## Conversations: RWKV-7 {name.removeprefix("chat ")}

A dialogue of two friends is read first, then a message; the first start of each program is left out.

{table(columns, rows)}
"""


def targets(name, group):
    """As `report.targets`."""
    (reply,), (message,), (stream,) = (group.commands(what) for what in ("reply", "message", "stream"))
    starts = group.facts["starts"]
    for label in PROGRAMS:
        if label != "ours":
            pairs = zip(starts["ours"][1:], starts[label][1:], strict=True)
            late = median(mine / other for mine, other in pairs)
            yield (
                f"{name}: a first reply, from the start",
                f"at most {LATEST} x {label}",
                f"{late:.2f} x",
                late <= LATEST,
            )
            late = group.times_faster(label, "ours", message)
            yield f"{name}: a reply to a message", f"at most {LATEST} x {label}", f"{late:.2f} x", late <= LATEST
    fast = group.times_faster("ours", "ours", reply, stream)
    yield f"{name}: tokens a second", f"at least {SLOWEST} x `RWKV.stream`", f"{fast:.2f} x", fast >= SLOWEST
