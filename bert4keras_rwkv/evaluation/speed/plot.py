"""A picture of a `Report`, by matplotlib."""

from importlib.util import find_spec
from pathlib import Path
from statistics import median

from bert4keras_rwkv.atomic import atomic_file

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path):
    """Raise now if `plot` could draw no such file: ImportError without matplotlib, ValueError for another suffix."""
    if find_spec("matplotlib") is None:
        raise ImportError("A plot needs matplotlib, which is not installed: `pip install matplotlib`.")
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"A plot is written as {', '.join(SUFFIXES)}. Received: '{path}'.")


def plot(report, path):
    """Draw tokens a second of every row, a line from least to most, and a mark where a limit is known."""
    from matplotlib.figure import Figure

    rows, commands = report.measured[::-1], list(report.settings.commands)
    figure = Figure(figsize=(9, 1 + len(commands) * (0.9 + 0.35 * len(rows))), layout="constrained")
    for axes, command in zip(figure.subplots(len(commands), 1, squeeze=False)[:, 0], commands, strict=True):
        _draw(axes, report, rows, command)
    figure.suptitle(f"{report.subject.given} on {report.machine['processor']}", fontsize="medium")
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def _draw(axes, report, rows, command):
    """The bars of one command."""
    kind, count, *texts = command.split()
    titles = {"prefill": f"reading a prompt of {count}", "decode": "writing one text"}
    axes.set_title(titles.get(kind, f"writing {' '.join(texts)} texts side by side"), loc="left", fontsize="medium")
    for place, row in enumerate(rows):
        rates, limit = report.rates(row, command), report.limit(row, command)
        if rates:
            axes.barh(place, median(rates), color="tab:blue" if row.step_bytes is not None else "tab:gray")
            axes.plot([min(rates), max(rates)], [place, place], color="black", linewidth=1)
        if limit:
            axes.plot([median(limit)] * 2, [place - 0.45, place + 0.45], color="tab:red", linewidth=2)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_xlabel("tokens a second; red: what the machine allows")
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
