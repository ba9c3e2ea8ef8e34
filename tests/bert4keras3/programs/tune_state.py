import os

os.environ["OPS_KERNEL"] = "1"

import keras
import numpy as np
from bert4keras3.backend import ops
from bert4keras3.layers import Loss
from bert4keras3.models import build_transformer_model

folder = "RWKV6-tiny/"
maxlen = 12


def build():
    model = build_transformer_model(
        config_path=folder + "config.json",
        model="rwkv6",
        keras_weights_path=folder + "model.weights.h5",
        return_keras_model=False,
        sequence_length=maxlen,
    )
    model.enable_state_tunig(time_shitf_tuning=True)
    return model


class CrossEntropy(Loss):
    def compute_loss(self, inputs, mask=None):
        wanted, given = inputs
        return ops.mean(ops.sparse_categorical_crossentropy(wanted[:, 1:], given[:, :-1]))


RWKV = build()
rwkv = RWKV.model
output = CrossEntropy(-1, dtype="float32")(rwkv.inputs[:] + rwkv.outputs)
train_model = keras.Model(rwkv.inputs, output)
train_model.compile(optimizer=keras.optimizers.Adam(0.05))
x = np.random.default_rng(0).integers(1, 50, (4, maxlen))
losses = train_model.fit(x, x, epochs=4, verbose=0).history["loss"]

rwkv.save_weights("state.weights.h5")
again = build()
again.model.load_weights("state.weights.h5")
