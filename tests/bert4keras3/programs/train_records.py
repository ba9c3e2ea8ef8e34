import keras
import numpy as np
import tensorflow as tf
from bert4keras3.layers import Loss
from bert4keras3.models import build_transformer_model
from keras import ops

folder = "RWKV6-tiny/"
maxlen, batch_size = 12, 4

generator = np.random.default_rng(0)
with tf.io.TFRecordWriter("train.tfrecords") as writer:
    for length in generator.integers(3, maxlen, 16):
        ids = tf.train.Int64List(value=generator.integers(1, 50, length))
        features = tf.train.Features(feature={"text": tf.train.Feature(int64_list=ids)})
        writer.write(tf.train.Example(features=features).SerializeToString())

feature_description = {"text": tf.io.FixedLenSequenceFeature(shape=[], dtype=tf.int64, allow_missing=True)}


def parse(record):
    return {"text": tf.io.parse_single_example(record, feature_description)["text"]}


def to_the_right(batch):
    """Rows are padded behind; put the padding in front."""
    rows = tf.reverse_sequence(batch["text"], tf.math.count_nonzero(batch["text"], axis=1), seq_axis=1)
    return {"Input-Token": tf.reverse(rows, axis=[1])}


data = tf.data.TFRecordDataset(["train.tfrecords"]).repeat().shuffle(64, seed=0)
data = data.map(parse).padded_batch(batch_size, {"text": [maxlen]}).map(to_the_right).prefetch(tf.data.AUTOTUNE)


class CrossEntropy(Loss):
    def compute_loss(self, inputs, mask=None):
        wanted, given = inputs
        real = ops.cast(ops.not_equal(wanted, 0), "float32")[:, 1:]
        cost = ops.sparse_categorical_crossentropy(wanted[:, 1:], given[:, :-1], from_logits=True)
        return ops.sum(cost * real) / ops.sum(real)


rwkv = build_transformer_model(
    folder + "config.json", None, "rwkv6", keras_weights_path=folder + "model.weights.h5", with_lm="linear"
)
train_model = keras.Model(rwkv.inputs, CrossEntropy(-1, dtype="float32")(rwkv.inputs[:] + rwkv.outputs))
train_model.compile(optimizer=keras.optimizers.AdamW(1e-2))
losses = train_model.fit(data, steps_per_epoch=4, epochs=3, shuffle=False, verbose=0).history["loss"]
