"""Prompts that are being read, some of them at once, a piece at a time."""

import dataclasses

from bert4keras_rwkv.models.rows import GROUP, READS, SHORT, Batch
from bert4keras_rwkv.server.asked import Ticket

MARK = 1024  # tokens of a long prompt between states that are kept


@dataclasses.dataclass(eq=False)
class Reading:
    """A prompt that is being read. batch: of one row, None until it is begun. at: how many ids are read. cached: how
    many of them were not computed.
    """

    ticket: Ticket
    batch: Batch | None = None
    at: int = 0
    cached: int = 0

    @property
    def answers(self):
        """How many answers to it are wanted."""
        return self.ticket.asked.answers

    @property
    def ids(self):
        """Those that are read; the last one is for the first step."""
        return self.ticket.asked.ids[:-1]

    @property
    def left(self):
        """How many ids are not read yet."""
        return len(self.ticket.asked.ids) - 1 - self.at

    @property
    def stretch(self):
        """How many there are up to where the state is kept next."""
        shared = self.ticket.asked.shared
        mark = shared - self.at if self.at < shared else self.left
        return min(self.left, mark, MARK - self.at % MARK)


class Reader:
    """Reads pieces of prompts with a `RowWriter`.

    start: the batch of one row in which texts begin. seconds: how long programs take (`compile_all`). keeper: a
    `Keeper`. figures: `Figures`, in which it counts.
    """

    def __init__(self, writer, start, seconds, keeper, figures):
        self._writer, self._start, self._seconds = writer, start, seconds
        self._keeper, self._figures, self._turn = keeper, figures, False

    def begin(self, reading):
        """Begin from the start, or from what the cache has of the prompt."""
        asked = reading.ticket.asked
        self._figures.read += reading.left
        reading.batch = self._start if asked.start is None else self._writer.begin(asked.start)
        found = self._keeper.find(asked, reading.ids)
        if found is not None:
            reading.at, reading.batch = found
            reading.cached = reading.at
            self._figures.cached += reading.at

    def next(self, readings, patience):
        """Which prompts are read next, and in which form: (some of the `Reading`s, one of `READS`), ([], None) if none.

        The oldest one, and then the one that is done first, and as many others as a form has room for. patience:
        seconds that it may take, if there is a form that takes no longer, None for any. Of those the form that takes
        least time for each token.
        """
        self._turn = not self._turn
        order = [one for one in readings if one.left]
        if not self._turn:
            order.sort(key=lambda one: one.left)
        if not order:
            return [], None
        forms = [form for form in READS if patience is None or self._seconds[form] <= patience]

        def cost(form):
            rows, size = form
            return self._seconds[form] / sum(min(size, one.stretch) for one in order[:rows])

        form = min(forms or [(1, SHORT), (GROUP, SHORT)], key=cost)
        return order[: form[0]], form

    def read(self, readings, form):
        """Read the next pieces, and keep the state behind where a prompt ends, or is long."""
        pieces = [one.ticket.asked.ids[one.at : one.at + min(form[1], one.stretch)] for one in readings]
        batches = self._writer.read([one.batch for one in readings], pieces, form)
        for reading, piece, batch in zip(readings, pieces, batches, strict=True):
            marked = len(piece) == reading.stretch
            reading.batch, reading.at = batch, reading.at + len(piece)
            if marked:
                self._keeper.keep(reading.ticket.asked, reading.ids[: reading.at], batch)
