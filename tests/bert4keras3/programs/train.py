import keras
from bert4keras3.layers import Loss
from bert4keras3.models import build_transformer_model
from bert4keras3.snippets import DataGenerator, open, sequence_padding, truncate_sequences
from bert4keras3.tokenizers import RWKV_TOKENIZER
from keras import ops

folder = "RWKV6-tiny/"
maxlen, batch_size, epochs = 16, 4, 3
tokenizer = RWKV_TOKENIZER(folder + "rwkv_vocab_v20230424.txt")


def build(weights):
    return build_transformer_model(
        config_path=folder + "config.json",
        model="rwkv6",
        keras_weights_path=weights,
        return_keras_model=False,
        sequence_length=maxlen,
        with_lm="softmax",
        dropout_rate=0.0,
        hidden_act="relu",
        prefix="",
    )


class CrossEntropy(Loss):
    def compute_loss(self, inputs, mask=None):
        wanted, given = inputs
        real = ops.cast(ops.not_equal(wanted, 0), "float32")[:, 1:]
        wanted = ops.cast(wanted, "float32")[:, 1:]
        given = ops.cast(given, "float32")[:, :-1]
        cost = ops.sparse_categorical_crossentropy(wanted, given, from_logits=False)
        return ops.mean(ops.sum(cost * real, -1) / (ops.sum(real, -1) + 1))


class Lines(DataGenerator):
    def __iter__(self, random=False):
        rows = []
        for is_end, line in self.sample(random):
            (ids,) = truncate_sequences(maxlen, -1, tokenizer.encode(line.strip())[0])
            rows.append(ids)
            if len(rows) == self.batch_size or is_end:
                x = sequence_padding(rows, maxlen, mode="pre")
                yield x, x
                rows = []


rwkv = build(folder + "model.weights.h5").model
rate = keras.optimizers.schedules.CosineDecay(1e-2, 20)
output = CrossEntropy(-1, dtype="float32")(rwkv.inputs[:] + rwkv.outputs)
train_model = keras.models.Model(rwkv.inputs, output)
train_model.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=0.01, beta_2=0.95))

with open("lines.txt", encoding="utf-8", indexable=True) as file:
    lines = Lines([file[i] for i in range(len(file))], batch_size)
x = next(iter(lines))[0]
first = train_model.fit(x, x, epochs=epochs, verbose=0)
second = train_model.fit(lines.forfit(), steps_per_epoch=2, epochs=epochs, shuffle=False, verbose=0)

train_model.save_weights("best.weights.h5")
again = build("best.weights.h5").model
loaded = build(None).model
loaded.load_weights("best.weights.h5")
