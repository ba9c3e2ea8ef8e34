"""Workers asked in turn: round after round, one command at a time, so that a drifting machine is the same for all.

A sample keeps the seconds and the share of the processors that other programs used meanwhile ("foreign").
"""

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field

TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds():
    """Processor time used by everything on this machine since it started."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICK


class WorkerError(RuntimeError):
    """A worker gives no answer. reason: why, without its name."""

    def __init__(self, label, reason):
        super().__init__(f"The worker '{label}': {reason}. Its messages: BENCH_VERBOSE=1.")
        self.reason = reason


class Worker:
    """A worker process and the commands it is asked in each round.

    python: the interpreter that it runs in. ready: wait until it is; else its first answer is still to come. patience:
    seconds that an answer may take, None for ever.
    """

    def __init__(self, label, module, arguments=(), environment=None, commands=(), python=sys.executable, ready=True):
        self.label, self.commands, self.patience = label, list(commands), None
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
        )
        self.facts = self.answer() if ready else {}

    def answer(self):
        if not select.select([self.process.stdout], [], [], self.patience)[0]:
            raise WorkerError(self.label, f"no answer in {self.patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self.label, f"it ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(self.label, answer["failed"])
        return answer

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def close(self):
        """End the worker; returns the most memory it held, in megabytes."""
        peak = self.ask("memory")["peak_mb"]
        self.process.communicate()
        return peak

    def kill(self):
        """End it whatever it does."""
        self.process.kill()
        self.process.communicate()


@dataclass
class Series:
    """What one worker answered to one command, round by round."""

    group: str
    label: str
    command: str
    seconds: list = field(default_factory=list)
    foreign: list = field(default_factory=list)

    @property
    def count(self):
        """Tokens (or repetitions) of one sample: the first number in the command."""
        return int((self.command.split() + ["1"])[1])


def wait_for_quiet(limit):
    """Wait until other programs use less than a quarter of one processor, at most `limit` seconds."""
    until = time.perf_counter() + limit
    while time.perf_counter() < until:
        before = processor_seconds()
        time.sleep(0.25)
        if processor_seconds() - before < 0.06:
            return


def interleave(group, workers, rounds, wait=0.0, say=print):
    """Ask every worker its commands, `rounds` times; a command is asked of all before the next. Returns the Series."""
    series = {}
    commands = list(dict.fromkeys(command for worker in workers for command in worker.commands))
    for number in range(rounds):
        for command in commands:
            for worker in workers:
                if command not in worker.commands:
                    continue
                wait_for_quiet(wait)
                busy, own, started = processor_seconds(), worker.processor_seconds(), time.perf_counter()
                answer = worker.ask(command)
                used = (processor_seconds() - busy) - (worker.processor_seconds() - own)
                elapsed = time.perf_counter() - started
                one = series.setdefault((worker.label, command), Series(group, worker.label, command))
                one.seconds.append(answer["seconds"])
                one.foreign.append(round(max(0.0, used / elapsed), 3))
                took = f"{answer['seconds'] * 1e3:.1f} ms"
                say(f"  {group} round {number + 1}/{rounds}: {worker.label}, {command}: {took}")
    return list(series.values())
