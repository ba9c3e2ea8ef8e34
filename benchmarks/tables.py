"""What the sections of the page share: the series of a group, and tables."""

from statistics import median


class Group:
    """The series of one group, by worker and command."""

    def __init__(self, group):
        self.facts, self.starts, self.command = group.get("facts", {}), group.get("starts", {}), group["command"]
        self.processor = group.get("processor")
        self.series = {(s["label"], s["command"]): s for s in group["series"]}

    def labels(self, command):
        return [label for label, other in self.series if other == command]

    def commands(self, word):
        """The commands that begin with `word`."""
        return list(dict.fromkeys(command for _, command in self.series if command.split()[0] == word))

    def seconds(self, label, command):
        return self.series[label, command]["seconds"]

    def rates(self, label, command):
        """Tokens (or repetitions) a second, round by round."""
        count = int((command.split() + ["1"])[1])
        return [count / seconds for seconds in self.seconds(label, command)]

    def times_faster(self, label, other, command, other_command=None):
        """How many times faster than `other`: the median over rounds of the quotient within a round."""
        pairs = zip(self.seconds(other, other_command or command), self.seconds(label, command), strict=True)
        return median(a / b for a, b in pairs)

    def rounds(self):
        return max(len(s["seconds"]) for s in self.series.values())

    def foreign(self):
        """The median share of the processors that other programs used."""
        return median(share for s in self.series.values() for share in s["foreign"])


def spread(values, digits=0):
    """'median (least to most)'."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def milliseconds(values):
    return spread([1e3 * value for value in values], 1)


def table(head, rows):
    """A Markdown table; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
