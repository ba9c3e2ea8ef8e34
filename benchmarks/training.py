"""Training one model: which programs take the same step in turn, and their section of the page."""

from . import peer_training
from .rounds import Worker, interleave
from .tables import milliseconds, spread, table

TORCH = "ours torch"
PURE = {"ours jax": "ours jax, pure ops", TORCH: "ours torch, pure ops"}
OURS, LOOP, STATE, FLOOR = "ours jax", "ours jax, plain loop", "ours jax, state tuning", "matrix products alone"
HUB, HUB_NATIVE = "Keras Hub jax", "Keras Hub jax, rwkv_ops"


def workers(version, options):
    """(label, module, arguments, environment) of every program that trains this version, and of the floor."""
    for backend in ("jax", "torch", "tensorflow"):
        yield f"ours {backend}", "peer_training", [version, "auto", "all"], {"KERAS_BACKEND": backend}
    for backend in ("jax", "torch"):
        yield PURE[f"ours {backend}"], "peer_training", [version, "ops", "all"], {"KERAS_BACKEND": backend}
    jax = {"KERAS_BACKEND": "jax"}
    yield STATE, "peer_training", [version, "auto", "state"], jax
    if version == "6":
        yield LOOP, "peer_training", [version, "loop", "all"], jax
    if version == "7" and options.keras_hub:
        yield HUB, "peer_keras_hub", [], jax
        yield HUB_NATIVE, "peer_keras_hub", ["native"], {**jax, "KERNEL_TYPE": "native"}
    yield FLOOR, "peer_products", [version], jax


def training(version, options, say):
    """The seconds of a step of every program, round by round; its memory and its first step as `starts`."""
    started = []
    for label, module, arguments, environment in workers(version, options):
        say(f"  train rwkv{version}: {label} compiles")
        program = {"python": options.keras_hub.absolute()} if module == "peer_keras_hub" else {}
        started.append(Worker(label, module, arguments, environment, ["step"], **program))
    series = interleave(f"train rwkv{version}", started, options.rounds, options.wait, say)
    starts = {worker.label: [{**worker.facts, "peak_mb": worker.close()}] for worker in started}
    names = ("LAYERS", "WIDTH", "BATCH", "LENGTH", "VOCABULARY")
    return {"series": series, "starts": starts, "facts": {name: getattr(peer_training, name) for name in names}}


def page(name, group):
    """The section about training one version."""
    rows = []
    for label in group.labels("step"):
        seconds, start = group.seconds(label, "step"), group.starts[label][0]
        rows.append(
            [
                label,
                milliseconds(seconds),
                f"{group.times_faster(label, OURS, 'step'):.2f}",
                f"{group.times_faster(label, FLOOR, 'step'):.0%}",
                "" if label == FLOOR else f"{start['peak_mb']:.0f}",
                "" if label == FLOOR else f"{start['first_step_s']:.0f}",
            ]
        )
    facts = group.facts
    shape = ", ".join(f"{facts[key]} {word}" for key, word in SHAPE.items())
    size = group.starts[OURS][0]["parameters"]
    tokens = facts["BATCH"] * facts["LENGTH"]
    rate = spread([tokens / seconds for seconds in group.seconds(OURS, "step")])
    head = ["program", "a step (ms)", "x ours jax", "of the floor", "most memory (MB)", "first step (s)"]
    return f"""## Training: one step of {name.split()[1].upper().replace("RWKV", "RWKV-")} ({shape})

Forward, backward and AdamW in float32, {size / 1e6:.1f} million parameters, through `RWKV.training_model()` and
`train_on_batch`. Ours on JAX: {rate} tokens/s. The floor is the time that the matrix products of a step take by
themselves. Memory is that of the whole process, its compiler included.

{table(head, rows)}
"""


SHAPE = {"LAYERS": "layers", "WIDTH": "wide", "BATCH": "rows", "LENGTH": "tokens each", "VOCABULARY": "ids"}


def targets(name, group):
    """(what, wanted, measured, reached) of one version."""
    what = f"{name.split()[1]} training step"

    def at_least(goal, other, label=OURS):
        faster = group.times_faster(label, other, "step")
        return f"{goal} x {other}", f"{faster:.2f} x", faster >= goal

    if HUB in group.starts:
        yield what, *at_least(1.8, HUB)
        share = group.starts[OURS][0]["peak_mb"] / group.starts[HUB][0]["peak_mb"]
        yield f"{what}, most memory", f"at most half of {HUB}", f"{share:.2f}", share <= 0.5
    if LOOP in group.starts:
        yield what, *at_least(3, LOOP)
    for label, goal in ((OURS, 1.25), (TORCH, 1.3)):
        if PURE[label] in group.starts:
            yield f"{what}, {label}", *at_least(goal, PURE[label], label)
    for backend in ("torch", "tensorflow"):
        slower = 1 / group.times_faster(f"ours {backend}", OURS, "step")
        yield f"{what}, {backend}", "at most twice that of JAX", f"{slower:.2f} x", slower <= 2
    share = 1 / group.times_faster(STATE, OURS, "step")
    yield f"{what}, state tuning", "at most 0.8 of a full step", f"{share:.2f}", share <= 0.8
