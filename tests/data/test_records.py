"""TFRecord files are the same to TensorFlow and to us, and damage is named by file and record."""

import struct

import numpy as np
import pytest

from bert4keras_rwkv.data import records as records_module
from bert4keras_rwkv.data.protobuf import read_varints, write_varints
from bert4keras_rwkv.training import Document, RecordFile, read_records, write_records

pytestmark = pytest.mark.backend_free

LENGTHS = (0, 1, 7, 300)


@pytest.fixture
def documents(rng):
    """Ids of one, two and three bytes; the third document has an answer mask."""
    ids = [rng.integers(0, 65536, length).astype("int32") for length in LENGTHS]
    ids[3][:4] = 0, 127, 128, 2**31 - 1
    return [Document(one, rng.integers(0, 2, 7).astype("int32") if len(one) == 7 else None) for one in ids]


def same(got, wanted):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert (one.answer is None) == (other.answer is None)
        assert one.answer is None or (one.answer == other.answer).all()


def test_what_is_written_is_read(tmp_path, documents):
    """In order, and in any order."""
    assert write_records(tmp_path / "a", documents) == len(documents)
    same(list(read_records(tmp_path / "a")), documents)
    found = RecordFile(tmp_path / "a")
    assert found.sizes.tolist() == list(LENGTHS)
    same([found[i] for i in (3, 0, -2)], [documents[i] for i in (3, 0, 2)])
    with pytest.raises(IndexError):
        found[4]


def test_tensorflow_reads_ours(tmp_path, documents):
    import tensorflow as tf

    write_records(tmp_path / "a", documents)
    examples = map(tf.train.Example.FromString, tf.data.TFRecordDataset(str(tmp_path / "a")).as_numpy_iterator())
    features = [{name: list(f.int64_list.value) for name, f in one.features.feature.items()} for one in examples]
    assert features == [
        {"text": one.ids.tolist()} | ({} if one.answer is None else {"answer": one.answer.tolist()})
        for one in documents
    ]


def test_we_read_tensorflows(tmp_path, documents):
    """With features of other kinds between, which we leave alone."""
    import tensorflow as tf

    def feature(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values.tolist()))

    other = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"name"]))
    rate = tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, 2.0]))
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        for one in documents:
            features = {"a": other, "text": feature(one.ids), "z": rate}
            if one.answer is not None:
                features["answer"] = feature(one.answer)
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    same(list(read_records(tmp_path / "a")), documents)


def test_checksum_by_table_and_by_package(rng):
    """The check value of CRC-32C, and the package's answers."""
    data = rng.bytes(1000)
    assert records_module._by_table(b"123456789") == 0xE3069283
    assert records_module._by_table(data) == records_module.crc32c(data)


@pytest.mark.parametrize("value", [0, 127, 128, 2**35, 2**63 - 1, -1])
def test_varints_of_any_size(value):
    """64 bits in groups of seven, the lowest first; negative numbers are their two's complement."""
    rest, wanted = value % 2**64, []
    while rest > 127:
        wanted.append(rest & 127 | 128)
        rest >>= 7
    assert write_varints([value, 5]) == bytes([*wanted, rest, 5])
    assert read_varints(write_varints([value, 5])).tolist() == [value, 5]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], r"record 3 .* the file ends after"),
        (lambda data: data[:5], r"record 0 \(byte 0\) cannot be read: it is cut off"),
        (lambda data: data[:-10] + b"?" + data[-9:], "record 3 .* its data do not match their checksum"),
        (lambda data: b"?" + data[1:], "record 0 .* its length does not match the checksum"),
        (lambda data: data + b"12345678901234567890", "record 4 .* its length does not match"),
    ],
)
def test_damage_is_named(tmp_path, documents, damage, said):
    path = tmp_path / "broken.tfrecord"
    write_records(path, documents)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"broken.tfrecord', {said}"):
        RecordFile(path)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"\x0a\x05ab", "longer than what holds it"),
        (b"\x0f\x00", "unknown wire type 7"),
        (b"\xff" * 3, "does not end"),
        (b"", "no int64 feature 'text'. It has: none"),
        (records_module.write_example({"text": [1, -5]}), "Received: -5 .. 1"),
        (records_module.write_example({"text": [1, 2], "answer": [1]}), "2 ids, 1 marks"),
        (records_module.write_example({"ids": [1, 2]}), "It has: ids"),
    ],
)
def test_a_record_that_is_no_document(tmp_path, payload, said):
    """Its checksums are right, what it holds is not."""
    length = struct.pack("<Q", len(payload))
    checks = [struct.pack("<I", records_module._masked(part)) for part in (length, payload)]
    (tmp_path / "a").write_bytes(length + checks[0] + payload + checks[1])
    with pytest.raises(ValueError, match=f"record 0 .*{said}"):
        list(read_records(tmp_path / "a"))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="one sequence of token ids"):
        write_records(tmp_path / "a", [[1, 2], [[3]]])
    assert list(tmp_path.iterdir()) == []
