# ruff: noqa: F403, F405
import time

from bert4keras3.models import build_transformer_model
from bert4keras3.Models.RWKV import *
from bert4keras3.tokenizers import RWKV_TOKENIZER

folder = "RWKV6-tiny/"
maxlen, penalty, temperature = 24, 1.3, 0.8
tokenizer = RWKV_TOKENIZER(folder + "rwkv_vocab_v20230424.txt")
RWKV = build_transformer_model(
    config_path=folder + "config.json",
    model="rwkv6",
    keras_weights_path=folder + "model.weights.h5",
    return_keras_model=False,
    sequence_length=maxlen,
    with_lm="softmax" if penalty == 1 and temperature == 1 else "linear",
    penalty=penalty,
    penalty_window=8,
    max_penalty_range=[1, 5],
    temperature=temperature,
    mask_output=[0],
)
modes = [("greedy", 1), ("topk", 5), ("topp", [0.8, 20])]


def generate(model, text):
    x = tokenizer.encode(text)[0]
    x += [0] * (maxlen - len(x))
    x = np.array([x], dtype="int32")
    start = time.time()
    o2 = model.predict([x], verbose=0)[0]
    o2 = o2[o2 != 0]
    print(len(o2) - len(tokenizer.encode(text)[0]), "tokens in", time.time() - start, "s")
    return o2, tokenizer.decode([o2])[0]


answers = []
for search_mode, k in modes:
    generate_model = RWKV.build_cache_model([maxlen], 261, search_mode, k, False, 0)
    generate_model.compile(jit_compile="auto")
    answers.append(generate(generate_model, "\n下面"))
