"""Batches as a function of their number: batch n of a data set and a seed is the same whenever it is asked for.

So training that was interrupted goes on with the data that come next, and readers in parallel need not agree on
anything. `pipeline.py` hands batches to `fit`.
"""

import numpy as np

from bert4keras_rwkv.data.binidx import magic_prime, sample_start
from bert4keras_rwkv.data.documents import answer_of, checked, document, indexed, place_of, sizes_of
from bert4keras_rwkv.data.packing import Stream, bucket_of, check_side, checked_lengths, padded

IDS, RESET, ANSWER = "Input-Token", "Reset", "Answer-Mask"  # inputs of `RWKV.training_model`


class Batches:
    """What the kinds of batches have in common. len() is the batches of one epoch; `batch(n)` takes any n from 0 on.

    A subclass says `batch` and `order`, the settings that decide which tokens batch n holds.
    """

    order: dict

    def batch(self, number):
        """Inputs by name, each (B, T) int32, of the batch `number`; epochs follow each other."""
        raise NotImplementedError

    def reader(self, start=0):
        """An iterator without end, from batch `start` on, whose position can be saved."""
        return Endless(self, start)

    def state(self, number):
        """The position before batch `number` as a dict for JSON."""
        return {"batch": int(number), "order": self.order}

    def number_of(self, state):
        """The number of the batch that a saved position stands before.

        Raises:
            ValueError: it was saved with other data or settings; which.
        """
        other = differences(state["order"], self.order)
        if other:
            raise ValueError(f"The position was saved with other data or settings: {other}.")
        return state["batch"]


class Endless:
    """Iterates over `Batches` without end."""

    def __init__(self, batches, start=0):
        self.batches, self.number = batches, start

    def __iter__(self):
        return self

    def __next__(self):
        batch = self.batches.batch(self.number)
        self.number += 1
        return batch

    def state(self):
        """Where the reader is, a dict for JSON."""
        return self.batches.state(self.number)

    def restore(self, state):
        """Go on from a saved position."""
        self.number = self.batches.number_of(state)


class PackedBatches(Batches):
    """Rows filled with documents one after the other, with `Reset` where one begins: for models with packed=True.

    Every token of every document is in one row of an epoch, once; only behind the last one is there padding.

    documents: `Document`s or sequences of ids, as `RecordFile`, `Binidx` or any iterable, which is kept. length:
    tokens of a row. seed: orders the documents anew in each epoch; None keeps their order. end_token: put behind each,
    None for none.
    carry: row b of a batch goes on where row b of the batch before ended, for training that carries the state; else
    row b goes on where row b - 1 ended. answer_mask: with `Answer-Mask`. vocab_size: larger ids are refused.

    Raises:
        ValueError: fewer tokens than a batch has.
    """

    def __init__(
        self,
        documents,
        length,
        batch_size,
        seed=0,
        end_token=0,
        carry=False,
        answer_mask=False,
        vocab_size=None,
        pad_token_id=0,
    ):
        self.documents = documents = indexed(documents)
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.end_token, self.carry, self.answer_mask = end_token, carry, answer_mask
        self.vocab_size, self.pad_token_id = vocab_size, pad_token_id
        _check_positive(length=length, batch_size=batch_size)
        self._sizes = sizes_of(documents)
        self._current = None, None
        total = self._stream(0).total
        if total < length * batch_size:
            raise ValueError(
                f"The data set is shorter than a batch: {total} tokens in {len(documents)} documents, and a batch has "
                f"{batch_size} x {length} = {batch_size * length}. Add data, or take smaller batches."
            )
        self._epoch_batches = -(-total // (length * batch_size))
        self.order = {
            "kind": "packed",
            "documents": len(documents),
            "tokens": total,
            "length": length,
            "batch_size": batch_size,
            "seed": seed,
            "carry": carry,
        }

    def __len__(self):
        return self._epoch_batches

    def batch(self, number):
        epoch, step = divmod(number, len(self))
        stream = self._stream(epoch)
        windows = [stream.window(start, self.length, self.pad_token_id) for start in self._starts(step)]
        ids, reset, answer = map(np.stack, zip(*windows, strict=True))
        if self.carry and step == 0:
            reset[:, 0] = 1  # a row that begins inside a document does not go on with what the last epoch left
        return {IDS: ids, RESET: reset} | ({ANSWER: answer} if self.answer_mask else {})

    def _starts(self, step):
        """Where the rows of a batch begin in the stream."""
        rows = np.arange(self.batch_size)
        places = rows * len(self) + step if self.carry else step * self.batch_size + rows
        return [int(place) * self.length for place in places]

    def _stream(self, epoch):
        """The documents in the order of an epoch; the last is kept."""
        kept, stream = self._current
        if kept != epoch:
            order = _order(len(self.documents), self.seed, epoch)
            stream = Stream(self.documents, order, self.end_token, self.vocab_size, self._sizes)
            self._current = epoch, stream
        return stream


class BucketedBatches(Batches):
    """Padded batches of documents of about the same length, in a fixed set of lengths: one compilation for each.

    lengths: int, or several; each document goes where the padding is least. side: of the padding. too_long: 'error',
    or 'cut' to keep the first tokens of a document that exceeds the longest. What fills the last batch of a length is
    rows of padding. Other arguments as in `PackedBatches`; end_token: None, since an id that stands for padding would
    not be learned.

    Raises:
        ValueError: a document that is too long, or fewer documents than a batch has.
    """

    def __init__(
        self,
        documents,
        lengths,
        batch_size,
        seed=0,
        side="left",
        too_long="error",
        end_token=None,
        answer_mask=False,
        vocab_size=None,
        pad_token_id=0,
    ):
        self.documents = documents = indexed(documents)
        self.lengths, self.batch_size = checked_lengths(lengths), batch_size
        self.seed, self.side, self.answer_mask = seed, side, answer_mask
        self.end_token, self.vocab_size, self.pad_token_id = end_token, vocab_size, pad_token_id
        _check_positive(batch_size=batch_size)
        check_side(side)
        if too_long not in ("error", "cut"):
            raise ValueError(f"`too_long` is 'error' or 'cut'. Received: too_long={too_long!r}.")
        sizes = sizes_of(documents)
        self._there = np.flatnonzero(sizes > 0)
        if len(self._there) < batch_size:
            raise ValueError(
                f"The data set is shorter than a batch: {len(self._there)} documents with tokens, and a batch has "
                f"{batch_size}. Add data, or take smaller batches."
            )
        self._buckets = self._places(sizes + (end_token is not None), too_long)
        counts = np.bincount(self._buckets[self._there])
        self._epoch_batches = int(np.sum(-(-counts // batch_size)))
        self._current = None, None
        self.order = {
            "kind": "bucketed",
            "documents": len(documents),
            "tokens": int(sizes.sum()),
            "lengths": self.lengths,
            "batch_size": batch_size,
            "seed": seed,
        }

    def __len__(self):
        return self._epoch_batches

    def batch(self, number):
        epoch, step = divmod(number, len(self))
        bucket, numbers = self._plan(epoch)[step]
        rows = [self._row(int(i), self.lengths[bucket]) for i in numbers]
        rows += [(np.zeros(0, np.int32),) * 2] * (self.batch_size - len(rows))
        ids, answers = zip(*rows, strict=True)
        batch = {IDS: padded(ids, self.lengths[bucket], self.side, self.pad_token_id)}
        if self.answer_mask:
            batch[ANSWER] = padded(answers, self.lengths[bucket], self.side)
        return batch

    def _row(self, number, length):
        """Ids and answer of a document, at most `length`."""
        one = checked(document(self.documents[number]), self.vocab_size, place_of(self.documents, number))
        ids, answer = one.ids, answer_of(one)
        if self.end_token is not None:
            ids, answer = np.append(ids, self.end_token), np.append(answer, answer[-1])
        return ids[:length], answer[:length]

    def _plan(self, epoch):
        """[(bucket, numbers of documents)] of an epoch's batches; the last epoch's is kept."""
        kept, plan = self._current
        if kept == epoch:
            return plan
        order = self._there[_order(len(self._there), self.seed, epoch)]
        plan = []
        for bucket in range(len(self.lengths)):
            inside = order[self._buckets[order] == bucket]
            plan += [(bucket, inside[i : i + self.batch_size]) for i in range(0, len(inside), self.batch_size)]
        plan = [plan[i] for i in _order(len(plan), self.seed, epoch)]
        self._current = epoch, plan
        return plan

    def _places(self, sizes, too_long):
        """The bucket of each document."""
        buckets = bucket_of(sizes, self.lengths)
        over = buckets == len(self.lengths)
        if over.any() and too_long == "error":
            number = int(np.argmax(over))
            raise ValueError(
                f"{place_of(self.documents, number)} has {sizes[number]} tokens, and the longest of `lengths` is "
                f"{self.lengths[-1]} ({over.sum()} documents are longer). Add a length, or too_long='cut'."
            )
        return np.minimum(buckets, len(self.lengths) - 1)


class SampledBatches(Batches):
    """Pieces of a binidx data set in the order of RWKV-LM, across documents as there: the same tokens at each step.

    A row has ctx_len + 1 tokens, of which ctx_len are predicted. `Reset` is 0 everywhere, for RWKV-LM knows none; give
    the model packed=True, so that end tokens are tokens. prime: its magic prime, None to compute it. rank and
    world_size: of the process, where several share the samples.
    """

    def __init__(self, data, ctx_len, batch_size, prime=None, rank=0, world_size=1):
        _check_positive(ctx_len=ctx_len, batch_size=batch_size, world_size=world_size)
        self.data, self.ctx_len, self.batch_size, self.rank, self.world_size = (
            data,
            ctx_len,
            batch_size,
            rank,
            world_size,
        )
        self.prime = magic_prime(data.total, ctx_len) if prime is None else prime
        if self.prime * ctx_len + 1 > data.total:
            raise ValueError(
                f"The magic prime {self.prime} with ctx_len={ctx_len} needs {self.prime * ctx_len + 1} tokens, and "
                f"'{data.path}' has {data.total}. Leave `prime` out to have it computed."
            )
        if self.prime < batch_size * world_size:
            raise ValueError(
                f"The data set is shorter than a batch: {self.prime} samples of {ctx_len} tokens, and a batch has "
                f"{batch_size} x {world_size}. Add data, or take smaller batches."
            )
        self.order = {
            "kind": "sampled",
            "tokens": data.total,
            "length": ctx_len,
            "batch_size": batch_size,
            "prime": self.prime,
            "rank": rank,
            "world_size": world_size,
        }

    def __len__(self):
        return self.prime // (self.batch_size * self.world_size)

    def batch(self, number):
        samples = 1 + (number * self.batch_size + np.arange(self.batch_size)) * self.world_size + self.rank
        starts = [sample_start(int(sample), self.prime, self.ctx_len) for sample in samples]
        ids = np.stack([self.data.tokens(start, self.ctx_len + 1) for start in starts])
        return {IDS: ids, RESET: np.zeros_like(ids)}


def _order(count, seed, epoch):
    """The numbers below `count` in the order of an epoch; as they are without a seed."""
    return np.arange(count) if seed is None else np.random.default_rng([seed, epoch]).permutation(count)


def differences(saved, now):
    """What a saved mapping says otherwise than that of now, in words; empty if nothing."""
    names = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    return "; ".join(f"{name}={saved.get(name)!r}, now {now.get(name)!r}" for name in names)


def _check_positive(**values):
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"`{name}` is at least 1. Received: {name}={value}.")
