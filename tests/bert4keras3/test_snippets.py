"""The helpers for data, and the tokenizer as bert4keras3's guide calls it. They need no backend."""

import itertools
import os

import numpy as np
import pytest

from bert4keras_rwkv.bert4keras3 import snippets
from bert4keras_rwkv.bert4keras3.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free


@pytest.fixture
def tokenizer():
    return RWKV_TOKENIZER.from_entries({**{byte + 1: bytes([byte]) for byte in range(256)}, 257: b"ab"})


def test_ids_are_nested(tokenizer):
    ids = tokenizer.encode("abc")
    assert ids == tokenizer.encode(["abc"]) == [[257, 100]]
    ids[0] += [0] * 3  # a list of one's own each time
    assert tokenizer.encode("abc") == [[257, 100]]
    assert tokenizer.decode(np.array([[257, 100, 0]])) == ["abc"]
    assert tokenizer.decode([257, 100]) == "abc"


def test_other_names(tokenizer, capsys):
    assert tokenizer.encodeBytes("é".encode()) == [0xC3 + 1, 0xA9 + 1]
    assert tokenizer.decodeBytes([0xC3 + 1, 257]) == b"\xc3ab"
    assert tokenizer.idx2token[257] == b"ab" and tokenizer.token2idx[b"ab"] == 257
    tokenizer.printTokens([257, 0xC3 + 1])
    assert capsys.readouterr().out == "'ab'257 b'\\xc3'196 \n"


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [[1, 2, 3], [4, 0, 0]]),
        ({"mode": "pre", "value": 9}, [[1, 2, 3], [9, 9, 4]]),
        ({"length": 2}, [[1, 2], [4, 0]]),
        ({"length": [4], "mode": "pre"}, [[0, 1, 2, 3], [0, 0, 0, 4]]),
    ],
)
def test_sequence_padding(options, want):
    assert snippets.sequence_padding([[1, 2, 3], [4]], **options).tolist() == want


def test_sequence_padding_of_arrays():
    """Two dimensions are cut and filled, the third stays."""
    inputs = [np.ones((2, 3, 2)), np.ones((1, 1, 2))]
    out = snippets.sequence_padding(inputs, length=[3, 2], seq_dims=2)
    assert out.shape == (2, 3, 2, 2) and out[0].sum() == 8 and out[1].sum() == 2
    with pytest.raises(ValueError, match="'post' or 'pre'"):
        snippets.sequence_padding([[1]], mode="left")


def test_truncate_sequences():
    first, second = [1, 2, 3, 4], [5, 6]
    assert snippets.truncate_sequences(4, -1, first, [], second) == [[1, 2], [5, 6]]
    assert first == [1, 2]
    assert snippets.truncate_sequences(2, [0, -1], [1, 2], [3, 4]) == [[2], [3]]


def test_text_segmentate():
    text = "one, two. three, four.\nfive"
    assert snippets.text_segmentate(text, 12, "\n.,") == ["one, two.", "three, four.", "five"]
    assert snippets.text_segmentate("a b", 1, "") == ["a b"]


class Rows(snippets.DataGenerator):
    def __iter__(self, random=False):
        rows = []
        for is_end, item in self.sample(random):
            rows.append(item)
            if is_end or len(rows) == self.batch_size:
                yield rows, None
                rows = []


class _OfArrays(snippets.DataGenerator):
    """Lists of arrays, as bert4keras3's programs yield them; TensorFlow's `fit` takes tuples."""

    def __iter__(self, random=False):
        yield [np.array(self.data)], None


def test_data_generator():
    """Every item once an epoch, in order or in a new one; streams too, of which only a buffer is shuffled."""
    rows = Rows([*range(5)], batch_size=2)
    assert len(rows) == 3 and list(rows) == [([0, 1], None), ([2, 3], None), ([4], None)]
    batches = rows.forfit()
    for _ in range(2):
        assert sorted(item for batch, _ in itertools.islice(batches, 3) for item in batch) == [*range(5)]
    assert next(rows.fortest()) == [0, 1]
    (arrays,), labels = next(_OfArrays([1, 2], batch_size=2).forfit(random=False))
    assert arrays.tolist() == [1, 2] and labels is None
    stream = Rows((i for i in range(20)), batch_size=4, buffer_size=3)
    assert stream.steps is None
    shuffled = [item for batch, _ in stream.__iter__(True) for item in batch]
    assert sorted(shuffled) == [*range(20)] and shuffled != [*range(20)]
    assert all(item <= place + 3 for place, item in enumerate(shuffled))
    assert list(Rows([])) == []


def test_open_reads_lines_by_number(tmp_path):
    path, index = tmp_path / "lines.txt", tmp_path / "lines.json"
    with snippets.open(path, "w", encoding="utf-8") as file:
        file.write("一\ntwo\n三\n")
    for indexable in (True, str(index), str(index)):
        with snippets.open(path, encoding="utf-8", indexable=indexable) as file:
            assert [file[i] for i in (2, 0, 1)] == ["三\n", "一\n", "two\n"] and len(file) == 3
            file.seek(0)
            assert list(file) == ["一\n", "two\n", "三\n"]
    path.write_bytes(b"one more\n" + path.read_bytes())
    os.utime(index, (0, 0))  # an index of an older file is made anew
    with snippets.open(path, "rb", indexable=str(index)) as file:
        assert (len(file), file[0]) == (4, b"one more\n")
