"""The tokenizer of a cut vocabulary: the same texts with other ids, or a reason why there are none."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, PileTokenizer

pytestmark = pytest.mark.backend_free

BYTES = {byte + 1: bytes([byte]) for byte in range(256)}
WORLD = RWKV_TOKENIZER.from_entries(BYTES | {257: b"ab", 258: b" the", 259: "é".encode(), 260: b"abc"})
NEEDED = list(range(257))
CORPUS = "It was the best of times, it was the worst of times;\n    naïve 你好"
TEXTS = ["", "abc ab the é", "hello world", "你好 naïve", "  \n  "]


def test_world_ids_are_those_of_the_kept_tokens():
    cut = WORLD.remapped([*NEEDED, 260, 258])
    assert cut.encode("abc the ab") == [257, 258, 33, 98, 99]
    assert cut.vocab_size == 259
    assert [cut.decode(cut.encode(text)) for text in TEXTS] == TEXTS


@given(order=st.permutations(range(261)))
@settings(max_examples=10)
def test_any_order_of_all_ids_is_a_renaming(order):
    """Id 0 anywhere: token by token the text is cut as before."""
    cut = WORLD.remapped(order)
    for text in TEXTS:
        assert [order[token_id] for token_id in cut.encode(text)] == WORLD.encode(text)
        assert cut.decode(cut.encode(text)) == text
    assert order[cut.end_token] == 0 and cut.decode([cut.end_token]) == ""
    assert pickle.loads(pickle.dumps(cut)).encode("abc") == copy.copy(cut).encode("abc") == cut.encode("abc")


def test_texts_of_new_ids():
    cut = WORLD.remapped(range(270), ["hello world", None, b"\xff\xfe"])
    assert cut.encode("say hello world")[-1] == 270
    assert cut.encode_bytes(b"\xff\xfe") == [272]
    assert cut.decode([270]) == "hello world"
    assert cut.without_text(274) == (*range(261, 270), 271, 273)
    with pytest.raises(ValueError, match="id 271"):
        cut.decode([271])


@pytest.mark.parametrize("texts", [["ab"], ["xx", "xx"], [""], ["a"]])
def test_a_text_belongs_to_one_id(texts):
    with pytest.raises(ValueError, match="a text that no other has"):
        WORLD.remapped(range(261), texts)


def test_an_id_twice():
    with pytest.raises(ValueError, match="id 5 at 5 and at 257"):
        WORLD.remapped([*NEEDED, 5])


@pytest.mark.parametrize(
    ("keep", "end", "told"), [(range(1, 261), None, "left out 1 of them: 0"), ([0, 5, 7], 0, "left out 254 .*, ...")]
)
def test_without_what_text_needs_every_text_method_says_so(keep, end, told):
    cut = WORLD.remapped(keep, [None])
    assert cut.end_token == end and cut.vocab_size == len(keep) + 1 and cut.file_name is None
    methods = ["encode", "encode_bytes", "decode", "decode_bytes", "token_bytes", "save"]
    for call in [*(lambda name=name: getattr(cut, name)("x") for name in methods), cut.stream]:
        with pytest.raises(ValueError, match=told):
            call()
    assert cut.without_text(3) == (0, 1, 2)


def test_save_and_read_again(tmp_path):
    cut = WORLD.remapped([*NEEDED, 258], [None, "xyz"])
    cut.save(tmp_path / cut.file_name)
    again = RWKV_TOKENIZER(tmp_path / "vocab.txt")
    assert again.encode("xyz the ab") == cut.encode("xyz the ab") == [259, 257, 33, 98, 99]
    with pytest.raises(ValueError, match=r"end token is id 256\. Put id 0 first"):
        WORLD.remapped([*range(1, 257), 0]).save(tmp_path / "other.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.txt"]


@pytest.fixture(scope="module")
def pile(bpe_json):
    return PileTokenizer.from_json(bpe_json)


def needed(pile):
    return [pile.end_token, *(i for i in range(pile.vocab_size) if len(pile.token_bytes(i)) == 1)]


def test_pile_renaming(pile):
    """All ids in another order: Hugging Face's BPE cuts every text as before."""
    order = list(range(300))[::-1]
    cut = pile.remapped(order)
    assert cut.end_token == 299
    for text in [*TEXTS, "the cat and    the café"]:
        assert [order[token_id] for token_id in cut.encode(text)] == pile.encode(text)
        assert cut.decode(cut.encode(text)) == text


def test_pile_cut(pile, tmp_path):
    """Kept tokens are found though what they are merged from is gone; new texts come first; the file holds it all."""
    (the,) = pile.encode(" the")
    keep = [*needed(pile), 298, the]
    cut = pile.remapped(keep, ["hello world", None, "é!"])
    assert cut.encode("a the   b") == [*cut.encode("a"), len(keep) - 1, len(keep) - 2, *cut.encode("b")]
    assert cut.vocab_size == len(keep) + 3 and cut.without_text(len(keep) + 4) == (len(keep) + 1, len(keep) + 3)
    assert cut.encode("hello world")[-1] == len(keep) and cut.encode("é!") == [len(keep) + 2]
    texts = [*TEXTS, "the cat and    the café", "say hello world!é!", " " * 4, "def f(x): return x", "<|padding|>"]
    for text in texts:
        assert cut.decode(cut.encode(text)) == text
    cut.save(tmp_path / cut.file_name)
    for again in (PileTokenizer(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(cut))):
        assert again.encode(texts) == cut.encode(texts)
        assert (again.vocab_size, again.end_token) == (cut.vocab_size, 0)


@settings(max_examples=30)
@given(text=st.text(alphabet=st.sampled_from("the cat dog é\n你  ")), dropped=st.sets(st.integers(258, 299)))
def test_pile_texts_survive_any_cut(pile, text, dropped):
    """A token that is kept stays where it was found; the others are spelt with what is left."""
    keep = [token_id for token_id in range(300) if token_id not in dropped]
    cut = pile.remapped(keep)
    assert cut.decode(cut.encode(text)) == pile.decode(pile.encode(text))
    stays = [token_id for token_id in pile.encode(text) if token_id not in dropped]
    left = iter(keep[token_id] for token_id in cut.encode(text))
    assert all(token_id in left for token_id in stays)


def test_pile_cut_twice(pile):
    """Cutting a cut vocabulary is cutting once, new texts included."""
    once = pile.remapped([*needed(pile), 280, 299], ["hello world", "wow"])
    size = once.vocab_size
    twice = once.remapped([*range(size - 4), size - 1, size - 3, 400], ["more"])
    assert twice.encode("wowmore  ") == [size - 4, size - 1, size - 3]
    assert twice.decode(twice.encode("say hello world")) == "say hello world"
    assert twice.without_text(size + 1) == (size - 2, size)


@pytest.mark.parametrize("rows", [5, [0, 1.5], [0], [[1]], [*range(300), 999]])
def test_a_damaged_cut_file(bpe_json, tmp_path, rows):
    path = tmp_path / "tokenizer.json"
    path.write_text(f'{{"rows": {rows}, "tokenizer": {bpe_json}}}')
    with pytest.raises(ValueError, match=r"`rows` of .*tokenizer\.json"):
        PileTokenizer(path)


def test_other_programs_refuse_a_cut_file(pile, tmp_path):
    """Read without its rows it would give wrong ids."""
    from tokenizers import Tokenizer

    pile.remapped(needed(pile)).save(tmp_path / "tokenizer.json")
    with pytest.raises(Exception, match="line 1 column"):
        Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def test_pile_errors(pile):
    with pytest.raises(ValueError, match=r"no other has.* for id 300"):
        pile.remapped(range(300), [" the"])
    with pytest.raises(ValueError, match="UTF-8 only"):
        pile.remapped(range(300), [b"\xff\xfe"])
    with pytest.raises(ValueError, match="can have this text"):
        pile.remapped(range(300), ["Ġthe"])
    with pytest.raises(ValueError, match="left out"):
        pile.remapped(range(280, 300)).encode("a")


@pytest.mark.oracle
def test_the_piles_own(oracles):
    whole = PileTokenizer(oracles / "tokenizer" / "20B_tokenizer.json")
    keep = [*needed(whole), *whole.encode("Hello world"), *range(50260, 50277)]
    cut = whole.remapped(keep)
    assert cut.encode("Hello world") == [244, 245]
    assert cut.decode(cut.encode("a  b 你好 the")) == "a  b 你好 the"
    used = sorted({*needed(whole), *whole.encode(CORPUS)})
    cut = whole.remapped(used)
    assert [used[token_id] for token_id in cut.encode(CORPUS)] == whole.encode(CORPUS)
