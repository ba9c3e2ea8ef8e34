# ruff: noqa: F403, F405
from bert4keras3.models import build_transformer_model
from bert4keras3.Models.RWKV import *
from bert4keras3.tokenizers import RWKV_TOKENIZER

folder = "RWKV6-tiny/"
maxlen, n_chunk = 12, 3
tokenizer = RWKV_TOKENIZER(folder + "rwkv_vocab_v20230424.txt")
RWKV = build_transformer_model(
    config_path=folder + "config.json",
    model="rwkv6",
    keras_weights_path=folder + "model.weights.h5",
    return_keras_model=False,
    sequence_length=maxlen,
    with_lm="softmax",
    mask_output=[0],
)
generate_model = RWKV.build_cache_model(
    input_lengths=[maxlen],
    end_token=-1,
    search_mode="greedy",
    k=1,
    progress_print=False,
    index_bias=0,
    input_state=True,
    output_state=True,
)


def start(text):
    """The ids, and a state of zeros for each further input."""
    x = tokenizer.encode(text)[0]
    x += [0] * (maxlen - len(x))
    inputs = []
    for modelin in generate_model.inputs:
        shape = [1 if t is None else t for t in keras.ops.shape(modelin)]
        inputs.append(ops.zeros(shape, modelin.dtype))
    inputs[0] = ops.convert_to_tensor(np.array([x], dtype="int32"), dtype="int32")
    return inputs


def with_predict(text):
    inputs, pieces = start(text), []
    for _ in range(n_chunk):
        outs = generate_model.predict(inputs, verbose=3)
        out_ids = outs[0][0]
        pieces.append(out_ids[out_ids != 0])
        print(tokenizer.decode([pieces[-1]])[0], end="")
        ids = np.zeros([1, maxlen])
        ids[:, 0] = out_ids[-1]
        inputs = [np.array(ids, "int32")] + outs[1:]
    return pieces


def with_a_call(text):
    """Nothing but the ids leaves the device."""
    inputs, pieces = start(text), []
    for _ in range(n_chunk):
        outs = generate_model(inputs, training=False)
        out_ids = ops.convert_to_numpy(outs[0][0])
        pieces.append(out_ids[out_ids != 0])
        ids = np.zeros([1, maxlen])
        ids[:, 0] = out_ids[-1]
        inputs = [ops.convert_to_tensor(ids, "int32")] + outs[1:]
    return pieces


text = "\n下面"
predicted, called = with_predict(text), with_a_call(text)
