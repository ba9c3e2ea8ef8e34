"""How far a long command is."""

from tqdm import tqdm


class Bar:
    """A progress bar on stderr when it is a terminal; called with (done, total)."""

    def __init__(self, label, unit):
        self._bar = tqdm(desc=label, unit=unit, unit_scale=unit == "B", disable=None, leave=False)

    def __call__(self, done, total):
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
