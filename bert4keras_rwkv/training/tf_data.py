"""Data sets of `tf.data` for `fit`: from `Batches`, or from TFRecord files.

Each element is the dict of a model's inputs by name. TensorFlow must be there, whatever Keras runs on.
"""

import os

from bert4keras_rwkv.data.batches import ANSWER, IDS
from bert4keras_rwkv.data.documents import Joined, checked, place_of
from bert4keras_rwkv.data.packing import check_side, checked_lengths
from bert4keras_rwkv.data.records import ANSWER as ANSWER_FEATURE
from bert4keras_rwkv.data.records import TEXT as TEXT_FEATURE
from bert4keras_rwkv.data.records import RecordFile


def tf_dataset(batches, start=0):
    """`Batches` as an endless `tf.data.Dataset`, from batch `start` on."""
    tf = tensorflow()
    first = batches.batch(start)
    widths = {name: ids.shape for name, ids in first.items()}
    if hasattr(batches, "lengths"):  # more than one shape
        widths = dict.fromkeys(first, (batches.batch_size, None))
    signature = {name: tf.TensorSpec(shape, tf.int32) for name, shape in widths.items()}
    return tf.data.Dataset.from_generator(lambda: batches.reader(start), output_signature=signature).prefetch(2)


def record_dataset(
    files,
    batch_size,
    lengths=None,
    side="left",
    shuffle=0,
    seed=0,
    repeat=True,
    answer_mask=False,
    vocab_size=None,
    pad_token_id=0,
):
    """TFRecord files -> shuffle -> padded batches, the padding moved to the left, as a `tf.data.Dataset`.

    lengths: what a batch may be padded to, int or several, the smallest that holds its longest row; longer rows are
    cut. None: the longest row's own length, for which JAX and XLA compile anew whenever it is new. side: of the
    padding. shuffle: records in the buffer that the next is drawn from, 0 keeps the order. answer_mask: with
    `Answer-Mask`, from the feature `answer`, 1 everywhere in a record without. The records are read and checked once
    before. A shuffled order cannot be entered in the middle; `BucketedBatches` of `RecordFile`s can.

    Raises:
        ImportError: no TensorFlow.
        ValueError: a damaged record, an id not below vocab_size (which file, which record), fewer records than a batch.
    """
    tf = tensorflow()
    check_side(side)
    files = [os.fspath(file) for file in ([files] if isinstance(files, (str, os.PathLike)) else files)]
    lengths = None if lengths is None else checked_lengths(lengths)
    _check(files, batch_size, vocab_size)
    dataset = tf.data.TFRecordDataset(files)
    if shuffle:
        dataset = dataset.shuffle(shuffle, seed=seed)
    if repeat:
        dataset = dataset.repeat()
    longest = None if lengths is None else lengths[-1]
    dataset = dataset.map(lambda record: _parsed(tf, record, longest), tf.data.AUTOTUNE)
    pads = {TEXT_FEATURE: pad_token_id, ANSWER_FEATURE: 0, "size": 0}
    pads = {name: tf.constant(pad, tf.int32) for name, pad in pads.items()}
    dataset = dataset.padded_batch(batch_size, padding_values=pads, drop_remainder=True)

    def inputs(batch):
        names = {TEXT_FEATURE: IDS} | ({ANSWER_FEATURE: ANSWER} if answer_mask else {})
        return {names[name]: _placed(tf, batch[name], batch["size"], lengths, side, pads[name]) for name in names}

    return dataset.map(inputs, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def padding_moved_left(rows, sizes):
    """The `tf` form of `packing.padding_moved_left`: rows (B, T) padded on the right, sizes (B,)."""
    tf = tensorflow()
    width = tf.shape(rows)[1]
    columns = tf.range(width)[None] - (width - sizes[:, None])
    return tf.gather(rows, tf.math.floormod(columns, tf.maximum(width, 1)), batch_dims=1)


def tensorflow():
    """The module; its absence names what to install."""
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "`tf.data` needs TensorFlow, beside any backend: pip install tensorflow-cpu. Without it use "
            "`PackedBatches` or `BucketedBatches` and `keras_dataset`."
        ) from error
    return tensorflow


def _check(files, batch_size, vocab_size):
    """Read all records once: their checksums, their ids, and whether there are enough."""
    records = Joined(map(RecordFile, files))
    if vocab_size is not None:
        for number, one in enumerate(records):
            checked(one, vocab_size, place_of(records, number))
    if len(records) < batch_size:
        raise ValueError(
            f"The data set is shorter than a batch: {len(records)} records in {len(files)} files, and a batch has "
            f"{batch_size}. Add data, or take smaller batches."
        )


def _parsed(tf, record, longest):
    """ids, answer and size of a record, at most `longest` tokens."""
    integers = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
    found = tf.io.parse_single_example(record, {TEXT_FEATURE: integers, ANSWER_FEATURE: integers})
    ids, answer = (tf.cast(found[name], tf.int32) for name in (TEXT_FEATURE, ANSWER_FEATURE))
    answer = tf.cond(tf.size(answer) > 0, lambda: answer, lambda: tf.ones_like(ids))
    ids, answer = ids[:longest], answer[:longest]
    return {TEXT_FEATURE: ids, ANSWER_FEATURE: answer, "size": tf.size(ids)}


def _placed(tf, rows, sizes, lengths, side, pad):
    """Rows padded on the right, at the width and on the side they are wanted."""
    if lengths is not None:
        width = tf.gather(lengths, tf.searchsorted(lengths, tf.reduce_max(sizes)[None]))[0]
        rows = tf.pad(rows, [[0, 0], [0, width - tf.shape(rows)[1]]], constant_values=pad)
        if len(lengths) == 1:
            rows = tf.ensure_shape(rows, (None, lengths[0]))
    return padding_moved_left(rows, sizes) if side == "left" else rows
