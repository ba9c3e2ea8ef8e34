"""What programs for Keras Hub do with a causal language model: strings into `fit` and `generate`, samplers by name."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.models.small import small_model

TOKENIZER = RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)} | {257: "é".encode()})
TEXTS = ["A hacker", "is a person who", "writes"]


@pytest.fixture(scope="module")
def rwkv():
    return small_model(vocab_size=258, tokenizer=TOKENIZER)


@pytest.mark.on("torch")
def test_strings_in_every_form_are_one_training(rwkv):
    """A list, arrays of str and of bytes and a `tf.data` set give one loss, that of each token and end of a text."""
    tf = pytest.importorskip("tensorflow")
    rwkv.compile(optimizer="sgd", sampler="greedy")
    rows = [TOKENIZER.encode(text) + [0] for text in TEXTS]
    cost = [rwkv.score([row[:-1]], [row[1:]])[0].sum() for row in rows]
    wanted = -sum(cost) / sum(len(row) - 1 for row in rows)
    forms = [TEXTS, np.array(TEXTS), np.array([text.encode() for text in TEXTS])]
    sets = [tf.data.Dataset.from_tensor_slices(TEXTS).batch(3)]
    before = [ops.convert_to_numpy(variable) for variable in rwkv.backbone.variables]
    for x in [*forms, *sets]:
        loss = rwkv.fit(x, batch_size=3, verbose=0).history["loss"][0]
        assert loss == pytest.approx(wanted, rel=1e-5)
        for variable, value in zip(rwkv.backbone.variables, before, strict=True):
            variable.assign(value)


@pytest.mark.on("torch")
def test_generate_takes_arrays_and_datasets(rwkv):
    tf = pytest.importorskip("tensorflow")
    rwkv.compile(sampler="greedy")
    assert rwkv.sampling == Sampling(temperature=0.0)
    want = rwkv.generate(TEXTS, 20)
    assert rwkv.generate(np.array(TEXTS), 20) == want
    assert rwkv.generate(tf.data.Dataset.from_tensor_slices(TEXTS).batch(2), 20) == want
    assert rwkv.generate(np.array(TEXTS[0]), 20) == want[0]


@pytest.mark.backend_free
def test_the_tokenizer_by_hubs_names():
    assert TOKENIZER("é") == TOKENIZER.encode("é") == [257]
    assert TOKENIZER(np.array(["a", "é"])) == [[98], [257]]
    assert TOKENIZER.detokenize([98, 257]) == "aé"
    assert TOKENIZER.vocabulary_size() == 258
    assert TOKENIZER.token_to_id("é") == 257 and TOKENIZER.id_to_token(257) == "é"
    assert TOKENIZER.token_to_id("") == 0 and TOKENIZER.id_to_token(0) == ""
    assert TOKENIZER.id_to_token(0xC3 + 1) == b"\xc3" and TOKENIZER.token_to_id(b"\xc3") == 0xC4
    with pytest.raises(ValueError, match="No id of this vocabulary"):
        TOKENIZER.token_to_id("two")


def test_what_cannot_be_compiled(rwkv):
    with pytest.raises(ValueError, match="sampling"):
        rwkv.compile(sampler="beam")
