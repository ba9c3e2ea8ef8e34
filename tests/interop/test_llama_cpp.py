"""llama.cpp itself loads the GGUF files that we write, computes our logits, and encodes text as we do."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.models.build import load_weights
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights import open_weights
from bert4keras_rwkv.weights.formats.llama_cpp.write import BLOCKS, FEW_BITS, write_gguf
from tests.models.small import small_model
from tests.official import official_weights

llama_cpp = pytest.importorskip("llama_cpp")

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.backend_free]

SIZES = {"hidden_size": 128, "attention_head_size": 64, "intermediate_size": 192}
TOKENS = 20


def loaded(path):
    return llama_cpp.Llama(str(path), n_ctx=512, n_batch=64, n_threads=1, logits_all=True, verbose=False)


def their_logits(path, ids):
    """Logits (T, V) of llama.cpp."""
    model = loaded(path)
    model.eval(ids.tolist())
    logits = np.array(model.scores[: len(ids)])
    model.close()
    return logits


def our_logits(rwkv, ids):
    return ops.convert_to_numpy(rwkv.forward(ids[None].astype("int32"))[0])[0]


@pytest.fixture(scope="module", params=["6", "7"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def rwkv(version):
    return small_model(version, **SIZES)


@pytest.fixture(scope="module")
def reader(version):
    """A model for the weights of files."""
    return small_model(version, **SIZES)


@pytest.fixture
def ids(rng):
    return rng.integers(0, 40, TOKENS)


def test_float32(version, ids, tmp_path):
    """0.01 on logits whose standard deviation is about 1.5; seen are 1e-5. Eight layers, so that whatever is done
    every six would be seen.
    """
    rwkv = small_model(version, **SIZES, num_hidden_layers=8)
    write_gguf(tmp_path / "a.gguf", rwkv.weights(), rwkv.config)
    ours, theirs = our_logits(rwkv, ids), their_logits(tmp_path / "a.gguf", ids)
    assert ours.std() > 0.5
    assert np.abs(ours - theirs).max() < 0.01


# As shares of the logits' standard deviation. llama.cpp rounds activations too: to float16, to bfloat16, or in blocks
# to 8 bits, which is a hundredth of the largest of 32 numbers; a few such roundings follow each other here.
BARS = {"float16": 0.002, "bfloat16": 0.02} | dict.fromkeys(BLOCKS, 0.06)


@pytest.mark.parametrize("dtype", BARS)
def test_other_types(rwkv, reader, ids, tmp_path, dtype):
    """The same file, read by both: the mean distance of their logits is far below what another order of bits or blocks
    would give, which is about 1; with 5 bits and fewer it is below that of the rounding of the weights.
    """
    write_gguf(tmp_path / "a.gguf", rwkv.weights(), rwkv.config, dtype)
    with open_weights(tmp_path / "a.gguf") as tensors:
        load_weights(reader.backbone, tensors)
    exact, ours, theirs = our_logits(rwkv, ids), our_logits(reader, ids), their_logits(tmp_path / "a.gguf", ids)
    distance = np.abs(ours - theirs).mean()
    assert distance < BARS[dtype] * ours.std()
    if dtype in FEW_BITS:
        assert distance < np.abs(exact - theirs).mean()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """llama.cpp with the World vocabulary."""
    path = tmp_path_factory.mktemp("world") / "a.gguf"
    sizes = {"heads": 1, "head_size": 64, "layers": 1, "ids": 65536, "ffn": 64}
    arrays = official_weights("6", np.random.default_rng(0), **sizes)
    config = RWKVConfig.from_shapes({name: array.shape for name, array in arrays.items()})
    write_gguf(path, arrays, config, "float16", RWKV_TOKENIZER())
    model = loaded(path)
    yield model
    model.close()


TEXTS = [
    "Hello, world!\n\nUser: hi\n\nAssistant:",
    "你好，世界。我们今天去公园散步吧！ 日本語のテキスト 한국어 Ελληνικά עברית العربية",
    "  def f(x):\n\treturn x ** 2  # ½ ≠ ∞ 🙂👩‍👩‍👧",
    "a'b\"c\\d\\x41\\n\x00\x01\x7f",
    " < s > [PAD] [PAD 65530] <S> s> <s",
    "ab" * 200 + "\r\n" * 9,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_tokenizer(world, text):
    """The ids of every text, and the bytes of every id."""
    tokenizer = RWKV_TOKENIZER()
    ids = world.tokenize(text.encode(), add_bos=False, special=False)
    assert ids == tokenizer.encode(text)
    assert world.detokenize(ids) == text.encode()


def test_random_bytes(world, rng):
    tokenizer = RWKV_TOKENIZER()
    for _ in range(50):
        data = rng.integers(0, 256, 100).astype(np.uint8).tobytes()
        ids = world.tokenize(data, add_bos=False, special=False)
        assert ids == tokenizer.encode_bytes(data)


@pytest.mark.parametrize(("text", "theirs"), [("<s>", [0]), ("[PAD65530]", [65530])])
def test_the_two_known_literals(world, text, theirs):
    """Texts of ids without text: it takes them for those ids, we spell them out."""
    assert world.tokenize(text.encode(), add_bos=False, special=False) == theirs
    assert len(RWKV_TOKENIZER().encode(text)) > 1


def test_special_ids(world):
    assert (world.token_bos(), world.token_eos()) == (0, 0)
    assert world.metadata["tokenizer.ggml.eot_token_id"] == "261"
    assert RWKV_TOKENIZER().encode("\n\n") == [261]
