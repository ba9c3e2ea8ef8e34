"""Documents of many lengths as arrays of one: padded on either side, in a few lengths, or packed without waste."""

import numpy as np

from bert4keras_rwkv.data.documents import answer_of, checked, document, place_of, sizes_of


def padded(rows, length, side="left", pad_token_id=0):
    """Sequences of ids as (n, length) int32, the padding all on one side.

    Raises:
        ValueError: a sequence that is longer.
    """
    check_side(side)
    out = np.full((len(rows), length), pad_token_id, np.int32)
    for number, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"Row {number} has {len(row)} tokens, more than length={length}. Cut it, or use a longer.")
        out[number, length - len(row) if side == "left" else 0 :][: len(row)] = row
    return out


def padding_moved_left(rows, sizes):
    """Rows (n, T) padded on the right, with the padding on the left. sizes: (n,), real tokens of each row."""
    columns = np.arange(rows.shape[1]) - (rows.shape[1] - np.asarray(sizes)[:, None])
    return np.take_along_axis(rows, columns % rows.shape[1], 1)


def bucket_of(sizes, lengths):
    """(n,): for each size the place of the smallest length that holds it; len(lengths) where none does.

    lengths: rising.
    """
    return np.searchsorted(lengths, sizes, "left")


def checked_lengths(lengths):
    """An int or several as a rising list."""
    rising = sorted({lengths} if isinstance(lengths, int) else set(lengths))
    if not rising or rising[0] < 1:
        raise ValueError(f"`lengths` are the lengths that batches may have, at least 1. Received: {lengths}.")
    return rising


def check_side(side):
    if side not in ("left", "right"):
        raise ValueError(f"`side` is where the padding goes, 'left' or 'right'. Received: side={side!r}.")


class Stream:
    """Documents one after the other in a given order, each with its end token, as one long row of tokens.

    order: the numbers of the documents. end_token: an id behind each, None for none. vocab_size: larger ids are
    refused. total: tokens.
    """

    def __init__(self, documents, order, end_token=0, vocab_size=None, sizes=None):
        self.documents, self.order = documents, np.asarray(order)
        self.end_token, self.vocab_size = end_token, vocab_size
        sizes = (sizes_of(documents) if sizes is None else sizes)[self.order]
        self._ends = np.cumsum(np.where(sizes > 0, sizes + (end_token is not None), 0))  # an empty one is left out
        self.total = int(self._ends[-1]) if len(sizes) else 0

    def window(self, start, length, pad_token_id=0):
        """(ids, reset, answer), each (length,) int32, from token `start` on.

        reset: 1 where a document begins, and at all padding behind the last one, so that nothing is to be predicted
        there. answer: 1 where a token is to be learned.
        """
        ids = np.full(length, pad_token_id, np.int32)
        reset, answer = np.ones(length, np.int32), np.zeros(length, np.int32)
        filled = 0
        while filled < length and start + filled < self.total:
            place = int(np.searchsorted(self._ends, start + filled, "right"))
            offset = start + filled - (int(self._ends[place - 1]) if place else 0)
            tokens, counts = self._document(int(self.order[place]))
            tokens, counts = tokens[offset:][: length - filled], counts[offset:][: length - filled]
            stop = filled + len(tokens)
            ids[filled:stop], answer[filled:stop], reset[filled:stop] = tokens, counts, 0
            reset[filled] = offset == 0
            filled = stop
        return ids, reset, answer

    def _document(self, number):
        """Ids and answer of a document, end token included; the end counts if the token before it does."""
        one = checked(document(self.documents[number]), self.vocab_size, place_of(self.documents, number))
        answer = answer_of(one)
        if self.end_token is None or not len(one.ids):
            return one.ids, answer
        return np.append(one.ids, self.end_token), np.append(answer, answer[-1])
