"""What becomes of requests, and a table of it."""

import collections

RIGHT = "right"
ROUNDING = "rounding"  # another text, whose tokens are each as good as the best, but for rounding
BUSY = "busy"  # told to wait
CUT = "cut off"  # by a kill
WRONG, UNEXPECTED, LOST = "WRONG", "UNEXPECTED", "LOST"
OUTCOMES = (RIGHT, ROUNDING, BUSY, CUT, WRONG, UNEXPECTED, LOST)
BAD = (WRONG, UNEXPECTED, LOST)
TOLD = 20  # of what is bad


class Tally:
    """How often each kind of client met each outcome, and what was said of the bad ones."""

    def __init__(self):
        self.counts, self.said = collections.Counter(), []

    def add(self, kind, outcome, said=""):
        """Count one more. said: about it, if it is bad."""
        self.counts[kind, outcome] += 1
        if outcome in BAD and len(self.said) < TOLD:
            self.said.append(f"{kind}, {outcome}: {said}")

    def total(self, *outcomes):
        """How many had one of these outcomes."""
        return sum(count for (_, outcome), count in self.counts.items() if outcome in outcomes)

    def table(self):
        """Lines: a kind in each, an outcome in each column."""
        yield f"{'':24}" + "".join(f"{outcome:>12}" for outcome in OUTCOMES)
        for kind in sorted({kind for kind, _ in self.counts}):
            yield f"{kind:24}" + "".join(f"{self.counts[kind, outcome]:12}" for outcome in OUTCOMES)


def received(reply):
    """The outcome of a request that there is nothing wrong with, as long as nobody has read the answer."""
    if reply.status == 429:
        return BUSY
    return RIGHT if reply.status == 200 and reply.is_whole else UNEXPECTED


def refused(reply):
    """(outcome, what to say of it) of a request that is to be refused."""
    return (RIGHT if 400 <= reply.status < 500 else UNEXPECTED), said(reply)


def said(reply):
    """What to say of a reply."""
    return f"status {reply.status}, {reply.arrivals[-1:]}"
