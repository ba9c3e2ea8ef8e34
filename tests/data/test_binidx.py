"""binidx files are RWKV-LM's to the byte, and so is the order in which they are read."""

import math
import struct

import numpy as np
import pytest

from bert4keras_rwkv.data.binidx import magic_prime
from bert4keras_rwkv.training import Binidx, SampledBatches, write_binidx

pytestmark = pytest.mark.backend_free

DOCUMENTS = [[5, 6, 7], [], [65535], list(range(1, 40))]


def reference(documents):
    """The bytes of .bin and .idx by the description of the format, number by number."""
    tokens = [[*ids, 0] for ids in documents]
    data = b"".join(struct.pack("<H", token) for ids in tokens for token in ids)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", 8)
    index += struct.pack("<Q", len(tokens)) + struct.pack("<Q", len(tokens) + 1)
    index += b"".join(struct.pack("<i", len(ids)) for ids in tokens)
    position = 0
    for ids in tokens:
        index += struct.pack("<q", position)
        position += 2 * len(ids)
    return data, index + b"".join(struct.pack("<q", number) for number in range(len(tokens) + 1))


def test_bytes_are_those_of_the_format(tmp_path):
    assert write_binidx(tmp_path / "a.v1", DOCUMENTS) == 4
    assert ((tmp_path / "a.v1.bin").read_bytes(), (tmp_path / "a.v1.idx").read_bytes()) == reference(DOCUMENTS)


@pytest.mark.parametrize("name", ["a", "a.bin", "a.idx"])
def test_what_is_written_is_read(tmp_path, name):
    """As documents without end tokens, and as one stream with them."""
    write_binidx(tmp_path / name, iter(DOCUMENTS))
    data = Binidx(tmp_path / name)
    assert [one.ids.tolist() for one in data] == DOCUMENTS
    assert data.sizes.tolist() == [3, 0, 1, 39]
    assert data.total == 47
    assert data.tokens(2, 5).tolist() == [7, 0, 0, 65535, 0]


def test_items_without_end_tokens(tmp_path):
    """Other tools write none: nothing is taken from such an item."""
    write_binidx(tmp_path / "a", [[1, 2], [3]], end_token=9)
    assert [one.ids.tolist() for one in Binidx(tmp_path / "a")] == [[1, 2, 9], [3, 9]]


@pytest.mark.parametrize(
    ("ctx_len", "total"),
    [(4, 47), (7, 500), (3, 5000)],
)
def test_samples_in_the_order_of_rwkv_lm(tmp_path, rng, ctx_len, total):
    """Each rank's rows over several epochs, by RWKV-LM's formula from its dataset.py."""
    write_binidx(tmp_path / "a", [rng.integers(1, 65536, total - 1)])
    stream = np.fromfile(tmp_path / "a.bin", "<u2").tolist()

    def prime(n):
        return n > 1 and not any(n % d == 0 for d in range(2, n))

    magic = max(p for p in range(total // ctx_len) if prime(p) and p % 3 == 2)
    world_size, batch_size = 2, 2
    samples_per_epoch = world_size * batch_size * 3

    def row(epoch, idx, rank):
        ii = 1 + epoch * samples_per_epoch + (idx * world_size) + rank
        factor = (math.sqrt(5) - 1) / 2
        factor = int(magic * factor)
        i = ((factor * ii * ii * ii) % magic) * ctx_len
        return stream[i : i + ctx_len + 1]

    for rank in range(world_size):
        batches = SampledBatches(Binidx(tmp_path / "a"), ctx_len, batch_size, rank=rank, world_size=world_size)
        assert batches.prime == magic
        for number in range(7):
            epoch, step = divmod(number, 3)
            wanted = [row(epoch, step * batch_size + b, rank) for b in range(batch_size)]
            assert batches.batch(number)["Input-Token"].tolist() == wanted


def test_a_pass_reads_every_piece_once(tmp_path, rng):
    """The law that the magic prime is for."""
    write_binidx(tmp_path / "a", [np.arange(1, 1000)])
    data = Binidx(tmp_path / "a")
    batches = SampledBatches(data, 7, 1)
    firsts = [batches.batch(n)["Input-Token"][0, 0] for n in range(batches.prime)]
    assert sorted(firsts) == [1 + 7 * i for i in range(batches.prime)]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("a.bin", lambda data: data[:-2], "item 3 lies in bytes 14 to 94, and there are 92"),
        ("a.bin", lambda data: data + b"1", "no whole number of uint16"),
        ("a.idx", lambda data: data[:-1], "4 items need 122 bytes, and it has 121"),
        ("a.idx", lambda data: data[:20], "no index of a binidx"),
        ("a.idx", lambda data: b"?" + data[1:], "no index of a binidx"),
        ("a.idx", lambda data: data[:17] + b"\x06" + data[18:], "dtype code 6"),
        ("a.idx", lambda data: data[:34] + struct.pack("<i", -4) + data[38:], "item 0 lies"),
    ],
)
def test_damage_is_named(tmp_path, name, damage, said):
    write_binidx(tmp_path / "a", DOCUMENTS)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"a\.(bin|idx)'.*{said}"):
        Binidx(tmp_path / "a")


def test_ids_that_the_dtype_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"Document 1 \(uint16 holds ids below 65536\): id 65536 at position 0"):
        write_binidx(tmp_path / "a", [[1], [65536]])
    assert list(tmp_path.iterdir()) == []


def test_too_little_data(tmp_path):
    write_binidx(tmp_path / "a", DOCUMENTS)
    with pytest.raises(ValueError, match="47 tokens, ctx_len=20"):
        magic_prime(47, 20)
    with pytest.raises(ValueError, match=r"shorter than a batch: 5 samples of 7 tokens, and a batch has 6 x 1"):
        SampledBatches(Binidx(tmp_path / "a"), 7, 6)
