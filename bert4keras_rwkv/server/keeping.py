"""States of rows for the cache and for who asked: taken out of a batch when there is time."""

import collections
import logging

from bert4keras_rwkv.server.places import Place

logger = logging.getLogger("bert4keras_rwkv")


class Keeper:
    """Finds and keeps states of a `RowWriter`'s rows. start: a batch of one row. cache: a `StateCache`, or None.

    A batch is a value: what is kept later is what it was.
    """

    def __init__(self, writer, start, cache):
        self._writer, self._start, self._cache = writer, start, cache
        self._later = collections.deque()  # (origin, ids, batch, number of a row)

    def find(self, asked, ids):
        """(count, batch of one row) of the longest beginning of `ids` that the cache has, None if there is none."""
        if self._cache is None or asked.origin is None:
            return None
        self.keep_now()
        found = self._cache.find(ids, asked.origin)
        return None if found is None else (found[0], self._writer.begin(found[1]))

    def keep(self, asked, ids, batch, place=0):
        """Have the cache keep the state of a row that has read `ids`, when there is time."""
        if self._cache is not None and asked.origin is not None:
            self._later.append((asked.origin, ids, batch, place))

    def keep_now(self):
        """What was to be kept. A state that cannot be is none of anybody's business but the log's."""
        while self._later:
            origin, ids, batch, place = self._later.popleft()
            try:
                self._cache.keep(ids, self._state(batch, place), origin)
            except Exception as error:
                logger.error("A state is not kept: %s", error, exc_info=error)

    def behind(self, row):
        """The `Place` behind an answer, if it is wanted. The cache has its state, too."""
        asked, (batch, place, count) = row.ticket.asked, row.last
        self.keep(asked, (*asked.ids, *row.drawn[:count])[:-1], batch, place)
        if not asked.keep:
            return None
        waiting = (asked.ids[-1], *row.shown)[count:]
        return Place(self._state(batch, place), waiting, len(asked.ids) + len(row.shown))

    def close(self):
        """Keep what is left, and nothing more."""
        self.keep_now()
        if self._cache is not None:
            self._cache.close()

    def _state(self, batch, place):
        alone = self._writer.taken(batch, self._start, [place]) if batch.size > 1 else batch
        return self._writer.state(alone)
