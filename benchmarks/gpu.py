"""Training, reading and writing on a GPU beside the kernels of other packages: what runs, and in which order.

Programs start several at a time, for it is compiling that takes the time. Whichever is ready is measured while the
others stand still, and ends. What is left when the time is over is named.
"""

import importlib.util
import select
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median

from .checkpoints import Size
from .rounds import Worker, WorkerError, interleave

SIZES = ["24x1024", "24x2048"]  # 0.4B and 1.5B
BACKENDS = "jax", "torch"
BORROWED = {"fla-core": ("fla", ("torch",)), "rwkv_ops": ("rwkv_ops", BACKENDS)}  # its module, the backends it serves
RWKV = "rwkv, its CUDA kernels"
PACKAGES = "jax", "torch", "triton", "keras", "fla-core", "rwkv-ops", "rwkv"
ON_CARD = {"OPS_KERNEL": "0", "KERNEL_TYPE": "native", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclass(frozen=True)
class Amounts:
    """How much is asked of the programs. device: where their arrays are to live."""

    device: str = "cuda"
    train: str = "4x1024"  # rows x tokens of a step
    steps: int = 4
    prompt: int = 4096
    tokens: int = 32
    rows: tuple[int, ...] = (1, 8, 64, 512)
    copied: int = 1 << 32  # bytes
    product: int = 8192


DRY = Amounts("cpu", "1x32", 1, 32, 3, (1, 2), 1 << 20, 64)  # to see that all of it runs, on any machine


@dataclass
class Program:
    """What is started and measured. absent: why it cannot be; room: of `--together`, for its share of the memory."""

    group: str
    label: str
    module: str
    arguments: tuple
    environment: dict
    commands: list
    absent: str = ""
    room: int = 1

    @property
    def word(self):
        """'train' or 'prefill': of its first command."""
        return self.commands[0].split()[0]

    def start(self):
        environment = {**ON_CARD, **self.environment}
        return Worker(self.label, self.module, self.arguments, environment, self.commands, ready=False)


@dataclass
class Outcome:
    """What is known of the programs so far. here: facts about the card that all groups share."""

    here: dict
    groups: dict = field(default_factory=dict)

    def of(self, program):
        empty = {"series": [], "facts": {"here": self.here, "absent": {}, "left out": []}}
        return self.groups.setdefault(program.group, empty)

    def missing(self, program, why):
        self.of(program)["facts"]["absent"].setdefault(program.word, {})[program.label] = why

    def told(self):
        """(name, group) each, as they are now."""
        return [(name, {**group, "series": list(group["series"])}) for name, group in self.groups.items()]


def programs(sizes, amounts, cache):
    """Every `Program`, the most important first; those that measure the card before all."""
    for backend in BACKENDS:
        wanted = ["copy 4", f"product {amounts.product}"]
        given = (amounts.device, amounts.copied)
        yield Program(
            "gpu", f"limits {backend}", "gpu_limits", given, {"KERAS_BACKEND": backend}, wanted, lacks(backend)
        )
    for size in sizes:
        for version in ("7", "6"):
            yield from of_model(version, size, amounts, cache)


def of_model(version, size, amounts, cache):
    """Those of one model: training, then reading; ours, those of others, then pure ops."""
    group, train = f"gpu rwkv{version} {size}", [f"train {amounts.steps}"]
    prefill, decode = f"prefill {amounts.prompt}", [f"decode {amounts.tokens} {rows}" for rows in amounts.rows]

    def ours(backend, kernel, label, what, commands, missing=""):
        given = (version, size, kernel, amounts.device, cache or "", what, *commands)
        here = {"KERAS_BACKEND": backend}
        room = max(1, size.width // 1024)
        return Program(group, label, "gpu_ours", given, here, commands, missing or lacks(backend), room)

    for what, commands in ((amounts.train, train), ("read", [prefill, *decode])):
        for backend in BACKENDS:
            yield ours(backend, "native", f"ours {backend}", what, commands)
        if what == "read":
            strategy = "cuda bf16" if amounts.device == "cuda" else "cpu fp32"
            given = (version, size, strategy, cache or "", prefill, decode[0])
            missing = lacks("torch") or lacks("rwkv")
            yield Program(group, RWKV, "gpu_rwkv", given, {}, [prefill, decode[0]], missing)
        for package, (module, served) in BORROWED.items():
            for backend in served:
                asked = commands[:1]  # a token at a time they do not serve better than ours
                yield ours(backend, package, borrowed(backend, package), what, asked, lacks(module, package))
        for backend in BACKENDS:
            yield ours(backend, "ops", pure(backend), what, commands)


def borrowed(backend, package):
    return f"ours {backend}, kernel of {package}"


def pure(backend):
    return f"ours {backend}, pure ops"


def lacks(module, package=None):
    """'' or a sentence that says that a module is not installed."""
    return "" if importlib.util.find_spec(module) else f"{package or module} is not installed"


def gpu(options, say):
    """Yield (name, group) again whenever there is more to tell of it. Without a card one sentence ends the program."""
    amounts = DRY if options.dry else Amounts()
    outcome = Outcome({"card": card(options.dry), "versions": versions(), "limits": {}, "amounts": vars(amounts)})
    sizes = [Size.parse(text) for text in options.sizes]
    waiting, started, until = [], [], time.monotonic() + 60 * options.minutes
    for program in programs(sizes, amounts, options.cache):
        if program.absent:
            outcome.missing(program, program.absent)
            say(f"  {program.group}: {program.label}: {program.absent}")
        else:
            waiting.append(program)
    while (waiting or started) and time.monotonic() < until:
        while waiting and (not started or room(started) + waiting[0].room <= options.together):
            started.append((waiting[0], waiting.pop(0).start()))
        answers = [worker.process.stdout for _, worker in started]
        ready = select.select(answers, [], [], max(0.0, until - time.monotonic()))[0]
        for one in [one for one in started if one[1].process.stdout in ready][:1]:
            started.remove(one)
            measure(*one, [worker for _, worker in started], outcome, until, options, say)
            yield from outcome.told()
    for program, worker in [*started, *((program, None) for program in waiting)]:
        outcome.of(program)["facts"]["left out"].append(f"{program.label} ({program.word})")
        if worker:
            worker.kill()
    yield from outcome.told()


def room(started):
    return sum(program.room for program, _ in started)


def measure(program, worker, others, outcome, until, options, say):
    """Ask a program that has something to say; what it answers, or why it does not, becomes part of the outcome."""
    group = outcome.of(program)
    try:
        worker.patience = max(1.0, until - time.monotonic())
        worker.answer()
        with standing_still(others):
            series = interleave(f"{program.group} {worker.label}", [worker], options.rounds, 0.0, say)
        worker.close()
    except WorkerError as error:
        worker.kill()
        outcome.missing(program, error.reason)
        say(f"  {error}")
        return
    for one in series:
        one.group = program.group
    group["series"] += series
    if program.module == "gpu_limits":
        copied, product = series
        best, amounts = outcome.here["limits"], outcome.here["amounts"]
        bandwidth = median(2 * copied.count * amounts["copied"] / seconds for seconds in copied.seconds)
        rate = median(2 * amounts["product"] ** 3 / seconds for seconds in product.seconds)
        best.update(bandwidth=max(bandwidth, best.get("bandwidth", 0)), rate=max(rate, best.get("rate", 0)))


@contextmanager
def standing_still(workers):
    """Others do not compile meanwhile, nor use the card."""
    for worker in workers:
        worker.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)  # what the card has been given is done
    try:
        yield
    finally:
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)


def card(dry):
    """The card's name and its driver."""
    if dry:
        return "none, a dry run"
    from bert4keras_rwkv.ops.kernels import cuda

    try:
        device = cuda.device()
    except cuda.NoLibraryError as error:
        raise SystemExit(f"Nothing can be measured on a GPU here: {error}") from error
    return f"{device.name}, a driver for CUDA {device.driver // 1000}.{device.driver % 1000 // 10}"


def versions():
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found
