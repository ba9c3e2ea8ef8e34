# ruff: noqa: E402, F403, F405
import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["OPS_KERNEL"] = "0"

import keras

keras.config.set_floatx("bfloat16")

from bert4keras3.models import build_transformer_model
from bert4keras3.Models.RWKV import *
from bert4keras3.tokenizers import RWKV_TOKENIZER

folder = "RWKV6-tiny/"
maxlen = 16
tokenizer = RWKV_TOKENIZER(folder + "rwkv_vocab_v20230424.txt")
model = build_transformer_model(
    config_path=folder + "config.json",
    model="RWKV6",
    keras_weights_path=folder + "model.weights.h5",
    return_keras_model=True,
    sequence_length=maxlen,
    with_lm="softmax",
)
model.summary()
print(model.inputs)
print(model.outputs)
print(tokenizer.encode(["hello world", "我是中国人"]))

# How long do many rows take? The numbers mean nothing, and are not even ints.
p = model.predict(np.ones([6, maxlen]), batch_size=4, verbose=0)
print("sums to", float(np.abs(np.asarray(p, "float32").sum(-1) - 1).max()) < 0.05)
