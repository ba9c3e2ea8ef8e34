"""Where a text stands, as a value that can be kept, sent and taken back."""

from typing import NamedTuple

from bert4keras_rwkv.state import RWKVState


class Place(NamedTuple):
    """state: an RWKVState of one row, NumPy. waiting: ids that it has not read yet. count: ids of the text, those
    included.
    """

    state: RWKVState
    waiting: tuple[int, ...]
    count: int

    def then(self, ids):
        """The place after more ids, which are read when something is written."""
        return self._replace(waiting=(*self.waiting, *ids), count=self.count + len(ids))
