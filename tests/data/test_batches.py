"""Batches hold every token once, are a function of their number, and can be told apart when something is wrong."""

import json

import numpy as np
import pytest

from bert4keras_rwkv.data.packing import padded, padding_moved_left
from bert4keras_rwkv.training import BucketedBatches, Document, Joined, PackedBatches

pytestmark = pytest.mark.backend_free

IDS, RESET, ANSWER = "Input-Token", "Reset", "Answer-Mask"


@pytest.fixture
def documents(rng):
    """Of many lengths, two empty. Ids tell the document: document i holds 100 i + 1, 100 i + 2, ..."""
    sizes = [5, 0, 17, 1, 1, 30, 8, 0, 12, 3, 21]
    return [np.arange(1, size + 1) + 100 * i for i, size in enumerate(sizes)]


def rows_of(batches, epoch=0):
    """{name: (rows, T)} of one epoch."""
    found = [batches.batch(epoch * len(batches) + n) for n in range(len(batches))]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def cut(ids, reset):
    """The documents in a row of tokens, as tuples; padding are the resets behind the last token."""
    starts = np.flatnonzero(reset)
    return [tuple(part) for part in np.split(ids, starts)[1:]]


@pytest.mark.parametrize("length", [1, 7, 31])
@pytest.mark.parametrize("seed", [None, 3])
def test_packing_loses_nothing_and_wastes_only_the_end(documents, length, seed):
    """The rows in a line are the documents with their ends, each once; padding stands behind the last one only."""
    batches = PackedBatches(documents, length, 2, seed, pad_token_id=-1)
    rows = rows_of(batches, epoch=1)
    ids, reset = rows[IDS].reshape(-1), rows[RESET].reshape(-1)
    used = np.flatnonzero(ids != -1)[-1] + 1
    assert used > len(ids) - 2 * length and (ids[:used] != -1).all() and (reset[used:] == 1).all()
    wanted = [(*one, 0) for one in documents if len(one)]
    got = cut(ids[:used], reset[:used])
    assert got == wanted if seed is None else sorted(got) == sorted(wanted)


@pytest.mark.parametrize("seed", [None, 3])
def test_rows_that_carry_the_state_go_on(documents, seed):
    """Row b of each batch goes on where row b of the one before ended: put together, the rows are the same documents.

    The few that lie across two rows are cut there once.
    """
    batches = PackedBatches(documents, 7, 3, seed, carry=True, pad_token_id=-1)
    per_step = [batches.batch(n) for n in range(len(batches))]
    lanes = np.concatenate([one[IDS] for one in per_step], 1)
    resets = np.concatenate([one[RESET] for one in per_step], 1)
    assert (resets[:, 0] == 1).all()
    plain = PackedBatches(documents, 7, 3, seed, pad_token_id=-1)
    np.testing.assert_array_equal(lanes.reshape(-1), rows_of(plain)[IDS].reshape(-1))
    extra = resets.reshape(-1) - rows_of(plain)[RESET].reshape(-1)
    assert set(np.flatnonzero(extra)) <= {0, lanes.shape[1], 2 * lanes.shape[1]} and extra.min() == 0


def test_answers_go_with_their_tokens(documents, rng):
    """The mask says of each token what its document says; the end token counts as the token before it."""
    marked = [Document(ids, rng.integers(0, 2, len(ids))) for ids in documents]
    counts = {int(i): int(a) for one in marked for i, a in zip(one.ids, one.answer, strict=True)}
    rows = rows_of(PackedBatches(marked, 7, 2, answer_mask=True, pad_token_id=-1))
    before = -1
    for token, answer in zip(rows[IDS].reshape(-1), rows[ANSWER].reshape(-1), strict=True):
        expected = 0 if token == -1 else counts[int(before) if token == 0 else int(token)]
        assert answer == expected
        before = token
    buckets = rows_of(BucketedBatches(marked, 31, 2, answer_mask=True))
    flat = zip(buckets[IDS].reshape(-1), buckets[ANSWER].reshape(-1), strict=True)
    assert all(answer == (counts[int(token)] if token else 0) for token, answer in flat)


@pytest.mark.parametrize("side", ["left", "right"])
def test_buckets_hold_every_document_once(documents, side):
    """In the smallest length that holds it, padded on one side; every batch has one of the shapes."""
    batches = BucketedBatches(documents, (20, 4, 30), 2, side=side)
    assert len(batches) == 2 + 2 + 1
    found = []
    for number in range(len(batches)):
        ids = batches.batch(number)[IDS]
        assert ids.shape in [(2, 4), (2, 20), (2, 30)]
        for row in ids:
            real = row[row != 0]
            np.testing.assert_array_equal(row, padded([real], len(row), side)[0])
            assert not len(real) or len(row) == min(n for n in (4, 20, 30) if n >= len(real))
            found.append(tuple(real))
    assert sorted(filter(None, found)) == sorted(tuple(one) for one in documents if len(one))


def test_left_padding_is_right_padding_moved(rng):
    """Zeros inside and at the end of a text are no padding."""
    rows = [rng.integers(0, 3, size) for size in (0, 1, 6, 7)]
    right = padded(rows, 7, "right", pad_token_id=0)
    np.testing.assert_array_equal(padding_moved_left(right, [len(row) for row in rows]), padded(rows, 7, "left"))


KINDS = {
    "packed": lambda documents, seed: PackedBatches(documents, 7, 2, seed),
    "carried": lambda documents, seed: PackedBatches(documents, 7, 2, seed, carry=True),
    "bucketed": lambda documents, seed: BucketedBatches(documents, (8, 31), 2, seed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_reader_goes_on(documents, kind):
    """From a position that was saved as JSON, across the end of an epoch, in a new process' objects."""
    whole = KINDS[kind](documents, 5)
    reader = whole.reader()
    stop = len(whole) - 1
    for _ in range(stop):
        next(reader)
    saved = json.dumps(reader.state())
    again = KINDS[kind](documents, 5).reader()
    again.restore(json.loads(saved))
    for number in range(stop, stop + 4):
        batch = next(again)
        for name, ids in whole.batch(number).items():
            np.testing.assert_array_equal(batch[name], ids)
    with pytest.raises(ValueError, match=r"other data or settings: seed=5, now 6\."):
        KINDS[kind](documents, 6).reader().restore(json.loads(saved))


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_and_seeds_differ(documents, kind):
    """In their order; without a seed every epoch is the first."""

    def tokens(seed, epoch):
        batches = KINDS[kind](documents, seed)
        numbers = range(epoch * len(batches), (epoch + 1) * len(batches))
        return b"".join(batches.batch(number)[IDS].tobytes() for number in numbers)

    assert len({tokens(5, 0), tokens(5, 1), tokens(6, 0)}) == 3
    assert tokens(None, 0) == tokens(None, 4)


def test_joined_parts_are_one_data_set(documents):
    whole, parts = PackedBatches(documents, 7, 2), PackedBatches(Joined([documents[:4], [], documents[4:]]), 7, 2)
    assert rows_of(whole)[IDS].tobytes() == rows_of(parts)[IDS].tobytes()


def test_any_iterable_is_a_data_set(documents):
    """It is read once and kept."""
    for make in (lambda d: PackedBatches(d, 7, 2), lambda d: BucketedBatches(d, 31, 2)):
        assert rows_of(make(documents))[IDS].tobytes() == rows_of(make(iter(documents)))[IDS].tobytes()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: PackedBatches(d, 64, 2), "107 tokens in 11 documents, and a batch has 2 x 64 = 128"),
        (lambda d: PackedBatches([], 64, 2), "0 tokens in 0 documents"),
        (lambda d: BucketedBatches(d, 30, 10), "9 documents with tokens, and a batch has 10"),
        (lambda d: BucketedBatches(d, 20, 2), "Document 5 has 30 tokens, .* is 20 .2 documents are longer"),
        (lambda d: BucketedBatches(d, (), 2), "`lengths`"),
        (lambda d: BucketedBatches(d, 30, 2, side="up"), "side='up'"),
        (lambda d: PackedBatches(d, 0, 2), "length=0"),
        (lambda d: rows_of(PackedBatches(d, 7, 2, vocab_size=1000)), "Document 10: id 1001 at position 0 .* 0 .. 999"),
        (lambda d: rows_of(BucketedBatches([*d, [5, -3]], 31, 2)), "Document 11: id -3 at position 1 is negative"),
    ],
)
def test_bad_input_says_sizes_and_places(documents, make, said):
    with pytest.raises(ValueError, match=said):
        make(documents)


def test_documents_that_are_too_long_can_be_cut(documents):
    rows = rows_of(BucketedBatches(documents, 20, 2, None, "right", too_long="cut"))[IDS]
    assert documents[5][:20].tolist() in rows.tolist()
