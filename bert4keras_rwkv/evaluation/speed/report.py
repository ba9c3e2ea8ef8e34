"""What was measured: as a table, as plain values."""

from dataclasses import dataclass, field
from statistics import median

from bert4keras_rwkv.evaluation.speed.programs import Subject
from bert4keras_rwkv.evaluation.speed.settings import OF_MACHINE, PRODUCT, READ, Settings
from bert4keras_rwkv.strategy import Strategy

HOST = "cpu:0"
NONE = "–"


@dataclass
class Row:
    """What was measured of one program. why_not: nothing was, and why. strategy: a str.

    versions: name -> version. held_bytes: of the weights as they are held; step_bytes: those that are read for one
    token; both None where they are not known. load_seconds: reading the file; start_seconds: from the start of the
    process to a first token. peak_bytes: the most memory that the process held. seconds: command -> those of each
    round; limits: the same, of the machine. failures: command -> why there is no answer to it.
    """

    program: str
    label: str
    strategy: str
    why_not: str | None = None
    versions: dict = field(default_factory=dict)
    needed_bytes: dict = field(default_factory=dict)
    held_bytes: int | None = None
    step_bytes: int | None = None
    load_seconds: float | None = None
    start_seconds: float | None = None
    peak_bytes: int | None = None
    seconds: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)

    def took(self, strategy, needed):
        """The strategy that was chosen where 'auto' was asked for, and what it needs: device -> bytes."""
        self.label = self.label.replace(self.strategy, strategy)
        self.strategy, self.needed_bytes = strategy, needed

    def loaded(self, answer, before):
        """Note what a program said when it had read the model. before: seconds since its process was started."""
        self.load_seconds = answer["load_seconds"]
        self.start_seconds = before + answer["load_seconds"] + answer["first_seconds"]
        self.held_bytes, self.step_bytes = answer.get("held_bytes"), answer.get("step_bytes")

    def failed(self, command, reason):
        """Note that there is no answer to a command."""
        self.failures[command] = str(reason)

    def rates(self, command, tokens):
        """Tokens a second of each round; none where it was not measured."""
        return [tokens / seconds for seconds in self.seconds.get(command, ())]

    def bandwidth(self):
        """Bytes that the machine read in a second, in the rounds of this program."""
        return [OF_MACHINE[READ] / seconds for seconds in self.limits.get(READ, ())]

    def operations(self):
        """Operations of float32 products in a second, likewise."""
        return [OF_MACHINE[PRODUCT] / seconds for seconds in self.limits.get(PRODUCT, ())]

    @property
    def is_on_processor(self):
        """Whether all of it lies in the memory whose bandwidth is measured, and how much is read there is known."""
        return self.step_bytes is not None and set(self.needed_bytes) == {HOST}

    @property
    def is_float32(self):
        """Whether all matrices are float32, and multiplied so: those in fewer bits may be multiplied faster."""
        return all(part.dtype == "float32" and part.stored is None for part in Strategy.of(self.strategy).parts)


@dataclass(frozen=True)
class Report:
    """All rows. `str` is a table, `to_dict` plain values for JSON. threads: of other programs and of the limits."""

    subject: Subject
    settings: Settings
    threads: int
    machine: dict
    rows: list

    @property
    def measured(self):
        """The rows of which something was measured."""
        return [row for row in self.rows if row.seconds]

    def rates(self, row, command):
        return row.rates(command, self.settings.commands[command])

    def limit(self, row, command):
        """Tokens a second that the machine allows, of each round; none where no limit is known.

        Of writing: the bandwidth of the memory over the bytes that one token reads. Of reading a prompt: float32
        products, where matrices are float32. Of several texts there is none: it is the one or the other, as they are
        few or many.
        """
        kind = command.split()[0]
        if not row.is_on_processor or kind == "texts" or (kind == "prefill" and not row.is_float32):
            return []
        if kind == "decode":
            return [bandwidth / row.step_bytes for bandwidth in row.bandwidth()]
        return [operations / (2 * self.subject.products) for operations in row.operations()]

    def share(self, row, command):
        """Which share of the limit was reached: the median over rounds; None where no limit is known."""
        pairs = list(zip(self.rates(row, command), self.limit(row, command), strict=False))
        return median(rate / limit for rate, limit in pairs) if pairs else None

    def to_dict(self):
        """All of it as plain values."""
        config, settings = self.subject.config, self.settings
        bandwidth, operations = self._of_machine()
        return {
            "model": self.subject.given,
            "version": config.model,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "parameters": self.subject.parameters,
            "settings": {
                "prompt": settings.prompt,
                "decode": settings.decode,
                "texts": list(settings.texts),
                "rounds": settings.rounds,
                "threads": settings.threads,
                "threads_of_others": self.threads,
            },
            "machine": self.machine,
            "limits": {"bytes_per_second": spread(bandwidth), "float32_operations_per_second": spread(operations)},
            "rows": [self._row(row) for row in self.rows],
        }

    def _row(self, row):
        names = ("program", "label", "strategy", "why_not", "versions", "needed_bytes", "held_bytes", "step_bytes")
        names += ("load_seconds", "start_seconds", "peak_bytes", "failures")
        speeds = {
            command: {
                "tokens_per_second": spread(self.rates(row, command)),
                "seconds": row.seconds[command],
                "limit_tokens_per_second": spread(self.limit(row, command)),
                "share_of_limit": self.share(row, command),
            }
            for command in self.settings.commands
            if command in row.seconds
        }
        return {name: getattr(row, name) for name in names} | {"speeds": speeds}

    def _of_machine(self):
        """(bytes a second, operations a second) of every round."""
        groups = list({id(row.limits): row for row in self.rows if row.limits}.values())
        return [x for row in groups for x in row.bandwidth()], [x for row in groups for x in row.operations()]

    def __str__(self):
        prefill, decode, *texts = self.settings.commands
        head = ["program", "decode", "of bandwidth", f"prefill of {self.settings.prompt}", "of products"]
        head += [f"{command.split()[2]} texts" for command in texts]
        head += ["load (s)", "first token (s)", "weights (MB)", "most memory (MB)"]
        lines = [self._line(row, prefill, decode, texts) for row in self.rows]
        return "\n".join([self._title(), "", *table(head, lines), "", *self._notes()])

    def _line(self, row, prefill, decode, texts):
        """The cells of a row."""
        cells = [row.label]
        for command in (decode, prefill):
            cells += [ranged(self.rates(row, command)), _percent(self.share(row, command))]
        cells += [ranged(self.rates(row, command)) for command in texts]
        cells += [NONE if x is None else f"{x:.1f}" for x in (row.load_seconds, row.start_seconds)]
        return cells + [NONE if x is None else f"{x / 1e6:,.0f}" for x in (row.held_bytes, row.peak_bytes)]

    def _title(self):
        c, of = self.subject.config, self.machine["processor"]
        size = f"{self.subject.parameters / 1e6:,.1f} million parameters"
        sizes = f"{c.num_hidden_layers} blocks of {c.hidden_size}"
        return f"{self.subject.given}: {c.model}, {sizes}, {size}. {of}, {self.threads} threads."

    def _notes(self):
        """The lines below the table."""
        rounds = self.settings.rounds
        of = f"median of {rounds} rounds (least to most)" if rounds > 1 else "of one round"
        yield f"Tokens a second, of all texts together, {of}."
        bandwidth, operations = ([x / 1e9 for x in one] for one in self._of_machine())
        if bandwidth:
            read, product = ranged(bandwidth), ranged(operations)
            yield f"In the same rounds: memory read at {read} GB/s, float32 products by NumPy at {product} GFLOP/s."
        if len({id(row.limits) for row in self.measured}) > 1:
            yield "Together they do not fit the memory: they were measured in groups, one after another."
        for row in self.rows:
            if row.why_not:
                yield f"{row.label}: {row.why_not}"
            yield from (f"{row.label}, {command}: {reason}" for command, reason in row.failures.items())


def spread(values):
    """{"median", "least", "most"} of numbers; None of none."""
    return {"median": median(values), "least": min(values), "most": max(values)} if values else None


def ranged(values):
    """'59.1 (55.0 to 61.2)', or less of fewer numbers."""
    if not values:
        return NONE
    middle, least, most = (_three_digits(x) for x in (median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})" if len(values) > 1 else middle


def _three_digits(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _percent(share):
    return NONE if share is None else f"{share:.0%}"


def table(head, rows):
    """The lines of a Markdown table, in columns; the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [head, rule, *rows]
    return [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    ]
