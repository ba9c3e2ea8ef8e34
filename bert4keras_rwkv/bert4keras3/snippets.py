"""The helpers of `bert4keras3.snippets` that programs for RWKV prepare their data with. They need no backend."""

import builtins
import json
import os
from itertools import chain

import numpy as np

from bert4keras_rwkv.atomic import atomic_file

__all__ = [
    "DataGenerator",
    "is_string",
    "open",
    "sequence_padding",
    "text_segmentate",
    "to_array",
    "truncate_sequences",
]

SHUFFLED = 1000  # batches kept of a stream whose length is not known, to draw from


def to_array(*args):
    """Each argument as a NumPy array; one array for one argument, else a list."""
    arrays = [np.array(one) for one in args]
    return arrays[0] if len(arrays) == 1 else arrays


def is_string(s):
    """Whether it is a str."""
    return isinstance(s, str)


def sequence_padding(inputs, length=None, value=0, seq_dims=1, mode="post", show_tqdm=False):
    """Sequences of one array: each cut behind `length`, or filled up to it with `value`.

    length: an int, one for each of the first `seq_dims` dimensions, or None for the longest. mode: 'post' fills behind,
    'pre' before. show_tqdm is accepted and shows nothing.
    """
    if mode not in ("post", "pre"):
        raise ValueError(f"`mode` says where to fill, 'post' or 'pre'. Received: mode={mode!r}.")
    arrays = [np.asarray(x) for x in inputs]
    if length is None:
        length = np.max([x.shape[:seq_dims] for x in arrays], axis=0)
    lengths = np.broadcast_to(length, (seq_dims,)).tolist()
    return np.stack([_padded(x[tuple(map(slice, lengths))], lengths, value, mode) for x in arrays])


def _padded(x, lengths, value, mode):
    """One array, filled up to `lengths` in its first dimensions."""
    missing = [length - size for length, size in zip(lengths, x.shape, strict=False)]
    widths = [(0, n) if mode == "post" else (n, 0) for n in missing]
    return np.pad(x, widths + [(0, 0)] * (x.ndim - len(lengths)), constant_values=value)


def truncate_sequences(maxlen, indices, *sequences):
    """Shorten lists, in place and always the longest, until they have `maxlen` items together.

    indices: which item goes, an int or one for each list. Returns the lists that are not empty.
    """
    sequences = [one for one in sequences if one]
    if not isinstance(indices, list | tuple):
        indices = [indices] * len(sequences)
    while sum(map(len, sequences)) > maxlen:
        longest = max(range(len(sequences)), key=lambda i: len(sequences[i]))
        sequences[longest].pop(indices[longest])
    return sequences


def text_segmentate(text, maxlen, seps="\n", strips=None):
    """Cut a text at the separators into pieces of at most `maxlen` characters, where they allow it.

    seps: characters to cut behind; a later one is used only inside pieces that the earlier ones leave too long.
    """
    text = text.strip().strip(strips)
    if not seps or len(text) <= maxlen:
        return [text]
    pieces, current = [], ""
    *inner, last = text.split(seps[0])
    for part in [one + seps[0] for one in inner] + [last]:
        if current and len(current) + len(part) > maxlen:
            pieces.append(current)
            current = ""
        current += part
    shorter = (text_segmentate(piece, maxlen, seps[1:], strips) for piece in [*pieces, current] if piece.strip())
    return list(chain.from_iterable(shorter))


class DataGenerator:
    """Batches from data: a subclass says `__iter__(random=False)`, with `for is_end, item in self.sample(random)`.

    data: a sequence, or anything that can be iterated over. buffer_size: how many items of the latter are drawn from.
    """

    def __init__(self, data, batch_size=32, buffer_size=None):
        self.data, self.batch_size = data, batch_size
        self.steps = -(-len(data) // batch_size) if hasattr(data, "__len__") else None
        self.buffer_size = buffer_size or batch_size * SHUFFLED

    def __len__(self):
        return self.steps

    def __iter__(self, random=False):
        raise NotImplementedError("A subclass of DataGenerator says `__iter__(random=False)`, which yields batches.")

    def sample(self, random=False):
        """Yield (whether it is the last, item) for each item; random: in a new order."""
        items = self._shuffled() if random else iter(self.data)
        current = next(items, None)
        for following in items:
            yield False, current
            current = following
        if current is not None:
            yield True, current

    def _shuffled(self):
        if self.steps is not None:
            for i in np.random.permutation(len(self.data)):
                yield self.data[i]
            return
        kept = []
        for item in self.data:
            kept.append(item)
            if len(kept) > self.buffer_size:
                yield kept.pop(np.random.randint(len(kept)))
        while kept:
            yield kept.pop(np.random.randint(len(kept)))

    def forfit(self, random=True):
        """Batches without end. Lists of arrays are tuples of them, for TensorFlow's `fit` takes no lists."""
        while True:
            yield from map(_tuples, self.__iter__(random))

    def fortest(self, random=False):
        """The inputs of `forfit`, without labels."""
        for batch in self.forfit(random):
            yield batch[0]


def _tuples(batch):
    """A batch (inputs, labels) whose lists of arrays are tuples."""
    arrays = (isinstance(part, list) and all(hasattr(one, "shape") for one in part) for part in batch)
    return tuple(tuple(part) if several else part for part, several in zip(batch, arrays, strict=True))


class open:
    """`builtins.open` for text or bytes; with `indexable`, also line i as `file[i]`, and `len(file)`.

    indexable: True, or the path of a JSON file in which the places of the lines are kept for the next time.
    """

    def __init__(self, name, mode="r", encoding=None, errors="strict", indexable=False):
        self.name, self.encoding, self.errors = name, encoding, errors
        how = {} if "b" in mode else {"encoding": encoding, "errors": errors}
        self.file = builtins.open(name, mode, **how)  # noqa: SIM115 - closed by `close` and `with`
        self.offsets = self._index(indexable) if indexable else []

    def _index(self, path):
        """Where each line begins, from a file that is not older than this one, or from reading it once."""
        if path is not True and os.path.exists(path) and os.path.getmtime(path) >= os.path.getmtime(self.name):
            with builtins.open(path, encoding="utf-8") as file:
                return json.load(file)
        offsets, place = [], self.file.tell()
        while self.file.readline():
            offsets.append(place)
            place = self.file.tell()
        self.file.seek(0)
        if path is not True:
            with atomic_file(path) as unfinished:
                unfinished.write_text(json.dumps(offsets), "utf-8")
        return offsets

    def __getitem__(self, number):
        self.file.seek(self.offsets[number])
        return self.file.readline()

    def __len__(self):
        return len(self.offsets)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __iter__(self):
        return iter(self.file)

    def __next__(self):
        return next(self.file)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()
