"""Programs side by side: each a process, all asked in turn, round after round."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from bert4keras_rwkv.evaluation.speed.machine import chosen_cores, core_count, description
from bert4keras_rwkv.evaluation.speed.programs import OURS_MODULE, Program, Subject, check_peers, label_of, ours, peer
from bert4keras_rwkv.evaluation.speed.report import Report, Row
from bert4keras_rwkv.evaluation.speed.settings import OF_MACHINE, Settings
from bert4keras_rwkv.evaluation.speed.worker import Worker, WorkerError
from bert4keras_rwkv.strategy import Strategy

ROOM = 0.9  # of the memory that is free, for models that are there at the same time


def measure_speed(
    model, strategies=("auto",), peers=(), settings=None, *, module=OURS_MODULE, environment=None, say=None, shown=False
):
    """How fast a model runs with each of some strategies, and in other programs. Returns a `Report`.

    Every program is a process, and all are asked in turn, so that a machine that drifts does so for all of them. Where
    they do not fit its memory together, they are measured one group after another. What cannot be measured is a row
    that says why. However this ends, no process stays.

    model: a weight file, preset folder or the name of a shipped model. strategies: `Strategy`s or strings. peers: some
    of `PEERS`. settings: `Settings`. module: what is run for this package. environment: variables for it, such as
    KERAS_BACKEND. say: called with a line on what is done now. shown: whether what the programs print is seen.

    Raises:
        ValueError: a peer, a strategy or a number of threads that cannot be, or a file that is no model.
        FileNotFoundError: no model is there.
    """
    settings, peers = Settings() if settings is None else settings, check_peers(peers)
    strategies = tuple(dict.fromkeys(map(Strategy.of, strategies)))
    cores, subject = chosen_cores(settings.threads), Subject.of(model)
    threads = settings.threads or core_count()
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="bert4keras-rwkv-"))
        bench = _Bench(stack, settings, cores, shown, say or (lambda text: None))
        found = [bench.begin(ours(subject, one, settings, module), environment) for one in strategies]
        for strategy in dict.fromkeys(one.row.strategy for one in found if one.worker):
            like = next(one for one in found if one.row.strategy == strategy)
            found += [bench.begin_peer(name, subject, like, folder, threads) for name in peers]
        measured = [one for one in found if one.worker]
        for group in _together(measured):
            bench.measure(group, threads)
    return Report(subject, settings, threads, description(), [one.row for one in found])


@dataclass
class _Entry:
    """A row, and the process of its program, None where there is none or it has ended. needed, free: device -> bytes
    of its memory that the program takes, and that were free before.
    """

    row: Row
    commands: list
    worker: Worker | None = None
    needed: dict = field(default_factory=dict)
    free: dict = field(default_factory=dict)

    def fail(self, reason):
        """Nothing more is asked of the program."""
        self.row.why_not = str(reason)
        self.close()

    def close(self):
        if self.worker is not None:
            self.worker.close()
        self.worker = None


class _Bench:
    """Begins programs, and asks them. stack: an `ExitStack`, at whose end they end."""

    def __init__(self, stack, settings, cores, shown, say):
        self._stack, self._settings, self._cores, self._shown, self._say = stack, settings, cores, shown, say

    def begin(self, program, environment=None):
        """The `_Entry` of a `Program`, which has not read the model yet."""
        self._say(f"{program.label} starts")
        entry = _Entry(Row(program.name, program.label, program.strategy), list(program.commands))
        try:
            entry.worker = self._worker(program, environment)
        except WorkerError as error:
            entry.fail(error)
            return entry
        facts = entry.worker.facts
        entry.row.versions = facts["versions"]
        entry.needed, entry.free = facts.get("needed_bytes", {}), facts.get("free_bytes", {})
        if "strategy" in facts:
            entry.row.took(facts["strategy"], entry.needed)
        if facts.get("problems"):
            entry.fail(" ".join(facts["problems"]))
        return entry

    def begin_peer(self, name, subject, like, folder, threads):
        """The `_Entry` of another program, with what is nearest to the strategy of one of ours."""
        strategy = like.row.strategy
        self._say(f"{label_of(name, strategy)}: its file is written")
        try:
            program = peer(name, subject, strategy, self._settings, folder, threads)
        except (ValueError, OSError) as error:
            return _Entry(Row(name, label_of(name, strategy), strategy, why_not=str(error)), [])
        entry = self.begin(program)
        entry.needed, entry.free = like.needed, like.free
        return entry

    def _worker(self, program, environment=None):
        options = {**program.options, "cores": self._cores}
        worker = Worker(program.module, options, self._settings.threads, environment, self._shown)
        self._stack.callback(worker.close)
        return worker

    def measure(self, group, threads):
        """Load the models of a group, ask everything once, then in every round, and end its programs."""
        for entry in group:
            self._say(f"{entry.row.label}: the model is read")
            self._load(entry)
        limit = self._limits(threads)
        for number in range(self._settings.rounds + 1):  # the first is to warm up
            for command in (*OF_MACHINE, *self._settings.commands):
                for entry in (limit, *group):
                    self._ask(entry, command, number)
        limit.close()
        for entry in group:
            entry.row.limits = limit.row.seconds
            self._end(entry)

    def _limits(self, threads):
        options = {"threads": threads}
        program = Program("limits", "limits", "", f"{__package__}.limits", options, tuple(OF_MACHINE))
        threading = {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        worker = self._worker(program, threading)
        return _Entry(Row("limits", "limits", ""), list(OF_MACHINE), worker)

    def _load(self, entry):
        try:
            entry.row.loaded(entry.worker.ask("load"), entry.worker.start_seconds)
        except WorkerError as error:
            entry.fail(error)

    def _end(self, entry):
        """End a program, whose memory is then known, if it has not ended by itself."""
        with suppress(WorkerError):
            entry.row.peak_bytes = entry.worker and entry.worker.ask("peak")["bytes"]
        entry.close()

    def _ask(self, entry, command, number):
        """Ask a program, and note the seconds; one that gives no answer is not asked again."""
        if entry.worker is None or command not in entry.commands:
            return
        self._say(f"round {number} of {self._settings.rounds}: {entry.row.label}, {command}")
        try:
            seconds = entry.worker.ask(command)["seconds"]
        except WorkerError as error:
            entry.commands.remove(command)
            entry.row.failed(command, error)
            return
        if number:
            entry.row.seconds.setdefault(command, []).append(seconds)


def _together(entries):
    """The entries in groups that fit the memory of every device at the same time."""
    groups = []
    for entry in entries:
        if not groups or not _fit([*groups[-1], entry]):
            groups.append([])
        groups[-1].append(entry)
    return groups


def _fit(entries):
    """Whether there is room for all of them on every device whose free memory is known."""
    free = {name: size for entry in entries for name, size in entry.free.items() if size is not None}
    return all(sum(entry.needed.get(name, 0) for entry in entries) <= ROOM * size for name, size in free.items())
