"""Text and ids as they are written: whenever a stream is left, its state is that of what was handed out."""

from itertools import islice

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.session import Session
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.models.small import arrays, assert_close, small_model

# Every byte, tokens of several letters, and one that ends in the middle of a character. 39 of 300 ids have no text.
TOKENS = {byte + 1: bytes([byte]) for byte in range(256)} | {257: b"ab", 270: "\u4f60".encode() + b"\xe5", 271: b"ca\n"}
SIZE = 300
SAMPLING = Sampling(temperature=0.9)
LETTERS = Sampling(temperature=3.0, mask_output=[i for i in range(SIZE) if i not in {98, 99, 100, 257, 271, 0xE5, 270}])


@pytest.fixture(scope="module")
def rwkv():
    return small_model(num_hidden_layers=1, vocab_size=SIZE, tokenizer=RWKV_TOKENIZER.from_entries(TOKENS))


def same(got, want):
    for g, w in zip(arrays(0 * got.wkv, got), arrays(0 * want.wkv, want), strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("as_text", [True, False])
def test_left_at_any_moment(rwkv, as_text, seed=1):
    """State, ids and seed are bit for bit those of a call for as many tokens, and one can go on from them."""
    prompt = rwkv.tokenizer.encode("The ")
    options = {"sampling": LETTERS, "stop_token_ids": None}
    whole = rwkv.generate(prompt, max_new_tokens=8, seed=seed, **options)
    for pieces in (0, 1, 3, 4):
        stream = rwkv.stream(prompt, max_new_tokens=8, seed=seed, as_text=as_text, **options)
        given = list(islice(stream, pieces))
        if as_text:
            assert "".join(given) == rwkv.tokenizer.decode(stream.ids)
        else:
            assert given == stream.ids
        count = len(stream.ids)
        *ids, state = rwkv.stream(prompt, max_new_tokens=count, seed=seed, return_state=True, **options)
        ids = prompt + ids
        assert ids == prompt + stream.ids == whole[: len(ids)]
        same(stream.state, state)
        rest = rwkv.generate(ids[-1:], max_new_tokens=8 - count, state=stream.state, seed=stream.seed, **options)
        assert ids + rest[1:] == whole
        assert list(stream) != [] or count == 8  # reading the state ended nothing


def test_again_is_another_answer_to_a_prompt_that_was_read(rwkv, monkeypatch):
    """What `stream` gives with that seed, state too; the prompt is read once, and the first stream is undisturbed."""
    options = {"sampling": LETTERS, "max_new_tokens": 6, "stop_token_ids": None}
    whole = {seed: list(rwkv.stream("The ", seed=seed, **options)) for seed in (1, 2, 3)}
    writer, begun = rwkv._write(), []
    read = writer.begin
    monkeypatch.setattr(writer, "begin", lambda request: begun.append(request) or read(request))
    first = rwkv.stream("The ", seed=1, **options)
    others = {seed: first.again(seed) for seed in (2, 3)}
    given = next(first)
    for seed, stream in others.items():
        assert list(stream) == whole[seed]
        again = rwkv.stream("The ", seed=seed, **options)
        list(again)
        same(stream.state, again.state)
    assert [given, *first] == whole[1]
    assert len(begun) == 3  # the first of all, and the two that are compared with


def stopped(rwkv, prompt, seed, stop):
    """The answer by its definition: the text before the stop, and the tokens that are whole in it."""
    ids = rwkv.generate(prompt, max_new_tokens=9, seed=seed, sampling=LETTERS, strip_prompt=True)
    text = rwkv.tokenizer.decode(ids)
    text = text[: text.find(stop) if stop in text else None]
    return text, ids[: max(n for n in range(len(ids) + 1) if text.startswith(rwkv.tokenizer.decode(ids[:n])))]


@pytest.mark.on("torch")
@pytest.mark.parametrize("stop", ["ba", "\n", "cab"])
def test_stop_texts(rwkv, stop):
    """However the text is asked for: the answer ends before the stop, the state after the whole tokens before it."""
    prompts = [rwkv.tokenizer.encode(text) for text in ("The ", "a", "On a day ")]
    wanted = [stopped(rwkv, prompt, 5 + row, stop) for row, prompt in enumerate(prompts)]
    options = {"max_new_tokens": 9, "stop_texts": stop, "sampling": LETTERS, "strip_prompt": True}
    ids, state = rwkv.generate(prompts, seed=5, return_state=True, **options)
    assert ids == [tokens for _, tokens in wanted]
    assert rwkv.generate([rwkv.tokenizer.decode(row) for row in prompts], seed=5, **options) == [t for t, _ in wanted]
    for row, (text, tokens) in enumerate(wanted):
        stream = rwkv.stream(
            prompts[row], max_new_tokens=9, seed=5 + row, sampling=LETTERS, stop_texts=[stop, "nor this"], as_text=True
        )
        assert "".join(stream) == text and stream.ids == tokens
        assert list(rwkv.stream(prompts[row], 9 + len(prompts[row]), None, LETTERS, 5 + row, stop_texts=stop)) == tokens
        asked = {"max_new_tokens": len(tokens), "seed": 5 + row, "sampling": LETTERS}
        *_, exact = rwkv.stream(prompts[row], **asked, return_state=True)
        same(stream.state, exact)
        assert_close(arrays(0 * exact.wkv, state[row]), arrays(0 * exact.wkv, exact))


@pytest.mark.on("jax")
def test_stop_texts_block_by_block(monkeypatch):
    """Rows that show less than the others when one is looked at, in a network that is run in small programs."""
    monkeypatch.setattr("bert4keras_rwkv.models.blocks.NARROWEST", 1)
    rwkv = small_model(num_hidden_layers=1, vocab_size=SIZE, tokenizer=RWKV_TOKENIZER.from_entries(TOKENS))
    prompts = [rwkv.tokenizer.encode(text) for text in ("The ", "a", "On a day ")]
    wanted = [stopped(rwkv, prompt, 5 + row, "ba") for row, prompt in enumerate(prompts)]
    options = {"max_new_tokens": 9, "stop_texts": "ba", "sampling": LETTERS, "strip_prompt": True}
    assert rwkv.generate(prompts, seed=5, **options) == [tokens for _, tokens in wanted]


@pytest.mark.on("torch")
def test_no_id_without_a_text_through_any_door(rwkv, tmp_path, capsys):
    """A vocabulary may have gaps, a head more rows than it has texts: where text is wanted none of those is drawn."""
    sampling, many = Sampling(temperature=50.0), {"max_new_tokens": 12, "seed": 3, "stop_token_ids": None}
    ids = rwkv.generate("a", sampling=sampling, **many)  # fails in the decoder if one is drawn
    assert isinstance(ids, str)
    assert any(i not in TOKENS for i in rwkv.generate([98], sampling=sampling, **many))
    "".join(rwkv.stream("a", sampling=sampling, **many))
    "".join(rwkv.stream([98], sampling=sampling, as_text=True, **many))
    rwkv.generate([98], sampling=sampling, stop_texts="zzz", **many)
    Session(rwkv, sampling=sampling, seed=3).read("a").write(12)
    rwkv.save_to_preset(tmp_path / "model")
    command = ["generate", "--model", f"{tmp_path}/model", "--backend", keras.config.backend(), "--prompt", "a"]
    assert main([*command, "--temperature", "50", "--top-p", "1", "--max-new-tokens", "12", "--seed", "3"]) == 0
    assert capsys.readouterr().out == rwkv.generate("a", sampling=sampling, strip_prompt=True, **many) + "\n"


def test_logits_that_are_no_numbers_are_said(rwkv):
    """Not turned into id 0: by every way of writing."""
    _, state = rwkv.prefill([[1, 2]])
    wkv = ops.convert_to_numpy(state.wkv).copy()
    wkv[:, -1, 0, 0, 0] = np.nan
    state = RWKVState(wkv, state.shift)
    for write in (rwkv.generate, lambda *args, **kw: list(rwkv.stream(*args, **kw))):
        with pytest.raises(ValueError, match="not finite"):
            write("The ", max_new_tokens=9, state=state, sampling=LETTERS)


@pytest.mark.on("torch")
@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=0.8), Sampling(penalty=1.3, presence_penalty=0.4, penalty_decay=0.9)]
)
def test_a_loop_of_ones_own(rwkv, sampling):
    """`prefill` and `sample` draw what `generate` draws for a seed, one text or several."""
    prompts = [[3, 4, 5], [9, 9, 4]]
    options = {"max_new_tokens": 6, "sampling": sampling, "seed": 8, "stop_token_ids": None}
    whole = rwkv.generate(prompts, strip_prompt=True, **options)
    logits, state = rwkv.prefill(prompts)
    answers = [[], []]
    for _ in range(6):
        alone = rwkv.sample(logits[0], sampling, 8, prompts[0], answers[0])
        drawn = rwkv.sample(logits, sampling, 8, prompts, answers)
        assert alone == drawn[0] and isinstance(alone, int)
        for answer, token in zip(answers, drawn, strict=True):
            answer.append(int(token))
        logits, state = rwkv.prefill(drawn[:, None], state)
    assert answers == whole


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.generate(None), "A prompt is a str"),
        (lambda m: m.generate(3), "A prompt is a str"),
        (lambda m: m.generate({"a": 1}), "A prompt is a str"),
        (lambda m: m.generate([1], max_length="5"), "`max_length` is a number of tokens"),
        (lambda m: m.generate([1], max_length=2**40), "`max_length` is a number of tokens"),
        (lambda m: m.generate([1], max_new_tokens=-1), "`max_new_tokens`"),
        (lambda m: m.generate([1], max_length=5, max_new_tokens=2), "not both"),
        (lambda m: m.generate([1], sampling={"top_p": 0.5}), "`sampling` is a `Sampling`"),
        (lambda m: m.generate([1], seed="x"), "`seed` is an int"),
        (lambda m: m.generate([1], seed=1.5), "`seed` is an int"),
        (lambda m: m.generate([]), "this one has none"),
        (lambda m: m.generate([1], stop_texts=[""]), "`stop_texts`"),
        (lambda m: m.generate([1], state=RWKVState.zeros(m.config, 2)), "A state for 1 rows has as many"),
        (lambda m: m.sample(np.zeros(7)), "`logits` is"),
        (lambda m: m.sample(np.zeros(SIZE), Sampling(penalty=2.0)), "`prompt` and `answer`"),
        (lambda m: Session(m, state=RWKVState.zeros(m.config, 2)), "A state for 1 rows has as many"),
        (lambda m: Session(m).read("a").write("5"), "`max_new_tokens`"),
    ],
)
def test_what_cannot_be_asked_for(rwkv, call, message):
    with pytest.raises(ValueError, match=message):
        call(rwkv)


@pytest.mark.on("torch")
def test_seeds_of_any_size(rwkv):
    assert rwkv.generate([1], 9, seed=2**70 + 5) == rwkv.generate([1], 9, seed=5)
    assert Session(rwkv, seed=2**70 - 1).read([1]).write(5) == Session(rwkv, seed=-1).read([1]).write(5)


@pytest.mark.on("torch")
def test_line_ends_are_line_feeds(rwkv):
    assert rwkv.generate("a\r\nb\rc", 9, seed=1) == rwkv.generate("a\nb\nc", 9, seed=1)


class Theirs:
    """Our model as `rwkv.utils.PIPELINE` calls one."""

    def __init__(self, rwkv):
        self.rwkv = rwkv

    def forward(self, tokens, state):
        import torch

        logits, state = self.rwkv.prefill([tokens], state)
        return torch.tensor(ops.convert_to_numpy(logits)[0]), state


@pytest.mark.live
@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"temperature": 0.0, "alpha_decay": 0.5, "token_ban": [98, 99]}])
def test_as_the_pipeline_draws(rwkv, options):
    """`Sampling.from_pipeline` means what PIPELINE does with the same values, where no chance is left: its penalties,
    its rule for digits, its zeros.
    """
    from rwkv.utils import PIPELINE, PIPELINE_ARGS

    options = {"alpha_frequency": 2.0, "alpha_presence": 3.0, "alpha_decay": 0.9, **options}
    given, pipeline = [], object.__new__(PIPELINE)
    pipeline.model, pipeline.tokenizer = Theirs(rwkv), rwkv.tokenizer
    pipeline.decode = lambda ids: given.append(ids) or rwkv.tokenizer.decode(ids)
    unused = rwkv.tokenizer.without_text(SIZE)
    banned = {**options, "token_ban": [*options.get("token_ban", []), *unused]}
    pipeline.generate("The 1 2", token_count=24, args=PIPELINE_ARGS(**banned, token_stop=[0]))
    tokens = [ids[0] for ids in given[::2]]  # it decodes each token alone, then with those that wait
    sampling = Sampling.from_pipeline(**options, tokenizer=rwkv.tokenizer)
    stream = rwkv.stream("The 1 2", max_new_tokens=24, stop_token_ids=[0], sampling=sampling)
    "".join(stream)
    assert [token for token in stream.ids if token] == tokens and len(tokens) > 5
