"""`keep_tokens` and `compound_tokens`: the model of a cut vocabulary is the model of the file with other ids."""

import json

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.models import RWKV, build_transformer_model
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, PileTokenizer
from bert4keras_rwkv.weights import open_weights, write_pth
from tests.official import VERSIONS, official_weights

IDS = 270
WORDS = {257: b" the", 258: b"cat", 259: b" cat", 260: b"ab", 261: "\u4f60".encode()}
TOKENIZER = RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)} | WORDS)
KEEP = [*range(257), 259, 261]
COMPOUNDS = [[257, 258], ([260, 3, 9], [2, 1, 1])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An RWKV-6 with its vocabulary beside it."""
    folder = tmp_path_factory.mktemp("whole")
    write_pth(folder / "model.pth", official_weights("6", np.random.default_rng(6), ids=IDS))
    TOKENIZER.save(folder / "rwkv_vocab_small.txt")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return build_transformer_model(checkpoint_path=folder / "model.pth")


@pytest.fixture(scope="module")
def cut(folder):
    return build_transformer_model(
        checkpoint_path=folder / "model.pth", keep_tokens=KEEP, compound_tokens=COMPOUNDS, mask_output=[0]
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(version, tmp_path, rng):
    """Rows are kept and averaged, and nothing else changes. 1e-6: averages are rounded to float32."""
    official = official_weights(version, rng, ids=IDS)
    write_pth(tmp_path / "model.pth", official)
    rwkv = build_transformer_model(checkpoint_path=tmp_path / "model.pth", keep_tokens=KEEP, compound_tokens=COMPOUNDS)
    found = rwkv.weights()
    assert rwkv.config.vocab_size == len(KEEP) + 2
    for name, array in official.items():
        if name in ("emb.weight", "head.weight"):
            means = [array[[257, 258]].mean(0), np.average(array[[260, 3, 9]], 0, [2, 1, 1])]
            array = np.concatenate([array[KEEP], means])
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.once
def test_the_same_network_with_other_ids(whole, cut, rng):
    """Logits of kept ids are those of the file; those of an average, for the head is linear, their average.

    1e-5: float32 sums in another order.
    """
    ids = rng.integers(0, len(KEEP), (2, 9))
    want, want_state = whole.forward(np.array(KEEP)[ids])
    got, state = cut.forward(ids)
    want, got = ops.convert_to_numpy(want), ops.convert_to_numpy(got)
    np.testing.assert_allclose(got[..., :-2], want[..., KEEP], atol=1e-5)
    np.testing.assert_allclose(got[..., -2], want[..., [257, 258]].mean(-1), atol=1e-5)
    np.testing.assert_allclose(got[..., -1], np.average(want[..., [260, 3, 9]], -1, [2, 1, 1]), atol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(state.wkv), ops.convert_to_numpy(want_state.wkv), rtol=1e-5, atol=1e-5
    )


@pytest.mark.on("torch")
def test_the_tokenizer_goes_with_it(cut):
    """A text gives the same tokens but for those left out; the averages have no text and are not written in any."""
    assert cut.tokenizer.encode(" the cat \u4f60") == [33, 117, 105, 102, 257, 33, 258]
    text = cut.generate("ab cat", 40, seed=3, stop_token_ids=None)
    assert text.startswith("ab cat")
    assert cut.tokenizer.without_text(cut.config.vocab_size) == (259, 260)


def test_a_preset_of_it_is_whole(cut, tmp_path, rng):
    """Weights, sizes and vocabulary are those of the new ids; nothing more is asked of whoever loads it."""
    cut.save_to_preset(tmp_path / "preset")
    again = RWKV.from_preset(tmp_path / "preset")
    assert again.config == cut.config
    assert again.tokenizer.encode(" the cat \u4f60") == cut.tokenizer.encode(" the cat \u4f60")
    with open_weights(tmp_path / "preset") as tensors:
        for name, array in cut.weights().items():
            np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize("given", ["object", "path"])
def test_a_given_tokenizer_is_the_files(folder, given):
    """Whether it was found or given, it is renumbered."""
    tokenizer = TOKENIZER if given == "object" else str(folder / "rwkv_vocab_small.txt")
    rwkv = build_transformer_model(checkpoint_path=folder / "model.pth", keep_tokens=KEEP, tokenizer=tokenizer)
    assert rwkv.tokenizer.encode(" cat\u4f60") == [257, 258]


@pytest.mark.on("torch")
def test_without_bytes_text_is_refused_and_ids_are_not(folder, tmp_path):
    rwkv = build_transformer_model(checkpoint_path=folder / "model.pth", keep_tokens=range(100, 262))
    for call in (rwkv.generate, lambda text: next(rwkv.stream(text)), rwkv.tokenizer.encode):
        with pytest.raises(ValueError, match=r"Text needs the end token.* left out 100 "):
            call("abc")
    assert len(rwkv.generate([1, 2, 3], 9, seed=1)) == 9
    rwkv.save_to_preset(tmp_path / "preset")
    assert sorted(path.name for path in (tmp_path / "preset").iterdir()) == ["config.json", "model.weights.h5"]


def test_config_path_says_the_size_of_the_file(folder, whole, tmp_path):
    """As in bert4keras, and as a `.weights.h5` without a config of its own needs it."""
    config, weights = tmp_path / "sizes.json", tmp_path / "w.weights.h5"
    config.write_text(json.dumps(whole.config.to_dict()))
    whole.model.save_weights(weights)
    options = {"config_path": config, "keep_tokens": [5, 3, 1], "tokenizer": TOKENIZER}
    for given in ({"keras_weights_path": weights}, {"checkpoint_path": folder / "model.pth"}):
        rwkv = build_transformer_model(**options, **given)
        assert rwkv.config.vocab_size == 3
        np.testing.assert_array_equal(rwkv.weights()["emb.weight"], whole.weights()["emb.weight"][[5, 3, 1]])
    with pytest.raises(ValueError, match="choose from 300 rows, as the config says"):
        build_transformer_model(**options, checkpoint_path=folder / "model.pth", vocab_size=300)


@pytest.mark.parametrize("what", [{"keep_tokens": [0]}, {"compound_tokens": [[0, 1]]}])
def test_random_weights_have_no_rows_to_choose(what, whole):
    with pytest.raises(ValueError, match=r"choose rows of a file.s vocabulary\. Give `checkpoint_path`"):
        build_transformer_model(**whole.config.to_dict(), **what)


def test_ids_of_another_file(folder):
    with pytest.raises(ValueError, match=r"ids of the file, 0 to 269\. Received: 270"):
        build_transformer_model(checkpoint_path=folder / "model.pth", keep_tokens=[270])


@pytest.mark.on("torch")
def test_a_cut_pile_vocabulary_goes_into_the_preset(folder, tmp_path):
    """Its file holds the numbering: read again it gives the same ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [("t", "h")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>"])
    pile, keep = PileTokenizer.from_json(bpe.to_str()), [0, *range(257, 0, -1)]
    rwkv = build_transformer_model(checkpoint_path=folder / "model.pth", keep_tokens=keep, tokenizer=pile)
    rwkv.save_to_preset(tmp_path / "preset")
    again = RWKV.from_preset(tmp_path / "preset").tokenizer
    assert again.encode("the") == rwkv.tokenizer.encode("the") == [keep.index(i) for i in pile.encode("the")]
