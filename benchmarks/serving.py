"""Servers over HTTP: ours, the loop that it runs without HTTP, and llama.cpp's; and their section of the page.

All of one model run side by side and are asked in turn, over loopback. What they write is random, and as long as asked.
"""

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from .checkpoints import Size, cache_folder, checkpoint
from .http_load import ask, together
from .quantised import gguf
from .rounds import Worker, interleave
from .served import Served, ours
from .start import SHIPPED
from .tables import milliseconds, spread, table

STREAMS = (1, 4, 16)
LENGTHS = {SHIPPED: 256}  # tokens of each stream
LENGTH, WAITING_LENGTH, TURN_LENGTH = 64, 32, 16
CLIENTS, HISTORY = 64, 2000
ROWS, SCHEDULER = "rows, no server", "scheduler, no HTTP"
OURS, NO_CACHE, LLAMA_SERVER, LLAMA_PYTHON = "ours", "ours, no cache", "llama-server", "llama-cpp-python[server]"
GREEDY = {"temperature": 0}
DRAWN = {"temperature": 1.0, "top_p": 0.85, "top_k": 0}
WORDS = (
    "The",
    "old",
    "machine",
    "in",
    "the",
    "corner",
    "hums",
    "when",
    "a",
    "hacker",
    "runs",
    "long",
    "jobs",
    "at",
    "night",
)
JAX = {"KERAS_BACKEND": "jax"}
FASTER_AT_16, ADDED, LATEST, KEPT, KEPT_ON_DISK = 6.0, 1.10, 4.0, 10.0, 5.0


class Loaded:
    """A server and the load that it is asked to bear, for `interleave`. tokens: a function from a text to its ids.
    spreads: of each burst of clients, the median and the 99th percentile of seconds to the first text.
    """

    def __init__(self, label, served, commands, tokens):
        self.label, self.commands, self._served, self._tokens = label, commands, served, tokens
        self._random, self._numbers, self.spreads = random.Random(0), itertools.count(), []

    def processor_seconds(self):
        return self._served.processor_seconds() + time.process_time()

    def ask(self, command):
        name, *numbers = command.split()
        return {"seconds": getattr(self, name)(*map(int, numbers))}

    def greedy(self, n, streams):
        """n tokens in all, by so many streams at once: seconds from the first request to the last token."""
        return self._streams(n, streams, GREEDY)

    def sampled(self, n, streams):
        return self._streams(n, streams, DRAWN)

    def _streams(self, n, streams, drawn):
        replies = self._replies([self._text(8) for _ in range(streams)], n // streams, drawn)
        return max(reply.ended for reply in replies) - min(reply.sent for reply in replies)

    def first(self, _):
        """Seconds to the first text, of one client."""
        return self._replies([self._text(8)], WAITING_LENGTH, GREEDY)[0].first

    def waiting(self, clients):
        """The median of seconds to the first text, of clients that come at once."""
        replies = self._replies([self._text(8) for _ in range(clients)], WAITING_LENGTH, GREEDY)
        firsts = [reply.first for reply in replies]
        self.spreads.append({"median": median(firsts), "p99": quantiles(firsts, n=100, method="inclusive")[-1]})
        return self.spreads[-1]["median"]

    def second(self, n):
        """Seconds to the first text of a second turn, behind about n tokens."""
        return self._next_turn(self._first_turn(n))

    def returned(self, n):
        """The same, when somebody else has asked something in between."""
        conversation = self._first_turn(n)
        self.first(1)
        return self._next_turn(conversation)

    def restarted(self, n):
        """The same, when the server has been stopped and started again in between, and has answered something."""
        conversation = self._first_turn(n)
        self._served.restart()
        self.first(1)
        return self._next_turn(conversation)

    def _first_turn(self, n):
        words = 100
        text = self._text(words)
        text += self._text(max(1, round(n * words / len(self._tokens(text))) - words))
        prompt = f"User: {text}\n\nAssistant:"
        (reply,) = self._replies([prompt], TURN_LENGTH, GREEDY)
        return prompt + reply.texts[0]

    def _next_turn(self, conversation):
        return self._replies([f"{conversation}\n\nUser: And then?\n\nAssistant:"], TURN_LENGTH, GREEDY)[0].first

    def _replies(self, prompts, length, drawn):
        """The replies to prompts that are sent at once, each of `length` tokens."""
        bodies = [
            {
                "prompt": prompt,
                "max_tokens": length,
                "stream": True,
                "seed": next(self._numbers),
                **drawn,
                **self._on_and_on(length),
            }
            for prompt in prompts
        ]
        asked = [ask(self._served.address, "/v1/completions", body) for body in bodies]
        replies = asyncio.run(together(asked))
        for reply in replies:
            if reply.status != 200 or not reply.is_whole or reply.reasons != {0: "length"}:
                message = f"'{self.label}' did not write {length} tokens: {reply.status}, {reply.arrivals[-2:]}"
                raise RuntimeError(message)
        return replies

    def _on_and_on(self, length):
        """The fields that keep an answer from ending earlier."""
        if self.label == LLAMA_SERVER:
            return {"ignore_eos": True}
        if self.label == LLAMA_PYTHON:  # its `min_tokens` lets a turn of a conversation end
            return {"logit_bias": {str(token): -100 for token in (0, *self._tokens("\n\n"))}}
        return {"min_tokens": length}

    def _text(self, words):
        """A text that was not asked before."""
        return " ".join([f"{next(self._numbers)}.", *self._random.choices(WORDS, k=words)])


def serving(name, version, options, say):
    """One model: SHIPPED, or random weights of a size. Facts: label -> spreads of `Loaded`."""
    path = SHIPPED if name == SHIPPED else checkpoint(Size.parse(name), options.cache, version)
    strategy = [] if name == SHIPPED else ["--strategy", "cpu fp32i8"]
    length, group = LENGTHS.get(name, LENGTH), group_name(name, version)
    bare, turns = (
        [f"greedy {length * count} {count}" for count in STREAMS],
        ["first 1", f"second {HISTORY}", f"returned {HISTORY}"],
    )
    streams = [*bare, f"sampled {length * STREAMS[-1]} {STREAMS[-1]}"]
    with contextlib.ExitStack() as stack:
        kept = ["--cache", stack.enter_context(tempfile.TemporaryDirectory())]
        loads = [(OURS, ours(path, *strategy, *kept), [*streams, *turns, f"waiting {CLIENTS}", f"restarted {HISTORY}"])]
        loads.append((NO_CACHE, ours(path, *strategy, "--cache-memory", "0"), [f"second {HISTORY}"]))
        loads += [(label, command, [*streams, *turns]) for label, command in llama_cpp(path, options)]
        say(f"  {group}: {len(loads) + 2} programs start")
        workers = [
            Worker(label, "peer_rows", [way, path, *strategy[1:]], JAX, bare)
            for label, way in ((ROWS, "rows"), (SCHEDULER, "scheduler"))
        ]
        servers = [stack.enter_context(Served(command, environment=JAX)) for _, command, _ in loads]
        workers += [
            Loaded(label, served, commands, tokens_by(servers[0]))
            for (label, _, commands), served in zip(loads, servers, strict=True)
        ]
        series = interleave(group, workers, options.rounds, options.wait, say)
    facts = {worker.label: worker.spreads for worker in workers if isinstance(worker, Loaded)}
    return {"series": series, "facts": facts}


def group_name(name, version):
    return f"serving {name}" if name == SHIPPED else f"serving rwkv{version} {name}"


def tokens_by(served):
    """A function that asks our server for the ids of a text."""
    return lambda text: asyncio.run(ask(served.address, "/tokenize", {"prompt": text})).json["tokens"]


def llama_cpp(path, options):
    """(label, command) of each of llama.cpp's servers that there is."""
    if not (options.llama_cpp or options.llama_server):
        return
    if path == SHIPPED:
        file = gguf(Path(options.cache or cache_folder()) / SHIPPED, "F16", options, SHIPPED)
    else:
        file = gguf(path, "Q8_0", options)
    rows, threads = STREAMS[-1], ["--threads", options.threads]
    if options.llama_server:
        room = ["--parallel", rows, "--ctx-size", rows * 2 * HISTORY]
        yield LLAMA_SERVER, [options.llama_server, "--model", file, "--port", "{port}", *threads, *room]
    if options.llama_cpp:
        room = ["--n_ctx", 2 * HISTORY, "--n_threads", options.threads, "--interrupt_requests", "false"]
        program = [options.llama_cpp, "-m", "llama_cpp.server"]
        yield LLAMA_PYTHON, [*program, "--model", file, "--port", "{port}", "--n_threads_batch", options.threads, *room]


HEAD = (
    "",
    *(f"{count} stream{'s' * (count > 1)}" for count in STREAMS),
    "16 to 1",
    "16 streams, drawn",
    "first text (ms)",
    f"second turn behind {HISTORY:,} tokens (ms)",
    "the same after another's question (ms)",
    "the same after a restart (ms)",
)


def page(name, group):
    """The section about one model."""
    labels = dict.fromkeys(label for label, _ in group.series)
    bursts = group.facts[OURS]
    middle, late = ([burst[key] for burst in bursts] for key in ("median", "p99"))
    return f"""## Serving: {name.removeprefix("serving ").replace("rwkv", "RWKV-")}

Tokens a second of all streams together, over HTTP on loopback, of which each is streamed; a prompt of a dozen tokens is
read, too. `{ROWS}` and `{SCHEDULER}` are the loop that the server runs, in a process of its own. {CLIENTS} clients that
come at once see the first text after {milliseconds(middle)} ms in the median, and {milliseconds(late)} ms in the 99th
percentile.

{table(HEAD, [row(group, label) for label in labels])}
"""


def row(group, label):
    """A row of HEAD."""

    def cell(word, count, shown):
        found = [one for one in group.commands(word) if one.split()[-1] == str(count) and (label, one) in group.series]
        return shown(found[0]) if found else ""

    def rate(command):
        return spread(group.rates(label, command), 1)

    def delay(command):
        return milliseconds(group.seconds(label, command))

    cells = [cell("greedy", count, rate) for count in STREAMS]
    ratio = f"{at_16(group, label):.1f}" if cells[0] else ""
    turns = [cell(word, HISTORY, delay) for word in ("second", "returned", "restarted")]
    return [label, *cells, ratio, cell("sampled", STREAMS[-1], rate), cell("first", 1, delay), *turns]


def at_16(group, label):
    """How many times more tokens a second 16 streams give than one."""
    one, *_, all_of_them = group.commands("greedy")
    rates = zip(group.rates(label, all_of_them), group.rates(label, one), strict=True)
    return median(many / single for many, single in rates)


def targets(name, group):
    """As `report.targets`."""
    (first,), (second,), (returned,), (restarted,) = map(group.commands, ("first", "second", "returned", "restarted"))
    all_of_them = group.commands("greedy")[-1]
    ratio = at_16(group, OURS)
    yield f"{name}: 16 streams", f"{FASTER_AT_16:.0f} x one", f"{ratio:.1f} x", ratio >= FASTER_AT_16
    for command in (group.commands("greedy")[0], all_of_them):
        added = 1 / group.times_faster(OURS, ROWS, command)
        what = f"{name}: {command.split()[2]} streams over HTTP"
        yield what, f"at most {ADDED} x the time of the bare loop", f"{added:.2f} x", added <= ADDED
    late = median(burst["p99"] / burst["median"] for burst in group.facts[OURS])
    what = f"{name}: first text of {CLIENTS} clients, 99th percentile"
    yield what, f"at most {LATEST:.0f} x the median", f"{late:.2f} x", late <= LATEST
    for command, wanted, means in ((second, KEPT, ""), (restarted, KEPT_ON_DISK, " after a restart")):
        sooner = group.times_faster(OURS, NO_CACHE, command, second)
        yield (
            f"{name}: second turn{means}",
            f"{wanted:.0f} x sooner than read again",
            f"{sooner:.1f} x",
            sooner >= wanted,
        )
    for label in (LLAMA_SERVER, LLAMA_PYTHON):
        for command in [*group.commands("greedy"), *group.commands("sampled"), first, second, returned]:
            if (label, command) in group.series:
                faster = group.times_faster(OURS, label, command)
                yield f"{name}: {meaning(command)}", f"1 x {label}", f"{faster:.2f} x", faster >= 1


def meaning(command):
    """What a command is called in the table of goals."""
    word, number, *streams = command.split()
    alone = {
        "first": "first text",
        "second": f"second turn behind {number} tokens",
        "returned": "second turn after another's question",
    }
    return alone.get(word) or f"{word}, streams: {streams[0]}"
