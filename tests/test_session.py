"""A session remembers: reading in parts is reading at once, writing twice is writing once."""

import numpy as np
import pytest

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.session import Session
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from tests.models.small import arrays, assert_close, small_model


@pytest.fixture(scope="module")
def rwkv():
    letters = {byte + 1: bytes([byte]) for byte in range(256)}
    return small_model(
        num_hidden_layers=1, vocab_size=257, tokenizer=RWKV_TOKENIZER.from_entries(letters), mask_output=[0]
    )


SAMPLING = Sampling(temperature=0.9, mask_output=[0])


def test_reading_in_parts(rwkv):
    parts, whole = Session(rwkv), Session(rwkv)
    for part in ("A ", "", "large cat", "."):
        parts.read(part)
    whole.read("A large cat.")
    state = rwkv.forward([rwkv.tokenizer.encode("A large cat.")])[1]
    for session in (parts, whole):
        assert_close(arrays(np.ones(1), session.state), arrays(np.ones(1), state))


def test_writing_twice_is_writing_once(rwkv):
    twice, once = (Session(rwkv, sampling=SAMPLING, seed=5).read("The cat") for _ in range(2))
    ids = rwkv.generate(
        rwkv.tokenizer.encode("The cat"), 7 + 20, stop_token_ids=0, sampling=SAMPLING, seed=5, strip_prompt=True
    )
    text = rwkv.tokenizer.decode(ids)
    assert once.write(20) == text
    twice.write(8)
    twice.write(12)
    assert_close(arrays(np.ones(1), twice.state), arrays(np.ones(1), once.state))


def test_a_fork_goes_its_own_way(rwkv):
    first = Session(rwkv, sampling=SAMPLING, seed=5).read("The cat")
    second = first.fork()
    second.read(" and a dog")
    same = first.fork()
    assert same.write(10) == first.write(10)
    assert np.abs(np.asarray(arrays(0, second.state)[1]) - arrays(0, first.state)[1]).max() > 1e-3


def test_a_look_at_a_session_leaves_its_stream_alone(rwkv):
    """A fork, and the state, in the middle: the same text comes."""
    whole = Session(rwkv, sampling=SAMPLING, seed=5).read("The cat").write(10)
    seen = Session(rwkv, sampling=SAMPLING, seed=5).read("The cat")
    stream = seen.stream(10)
    text = next(stream)
    assert text + seen.fork().write(2) and seen.state is not None
    assert text + "".join(stream) == whole


def test_a_state_moves_between_sessions(rwkv):
    first = Session(rwkv).read("A large")
    moved = Session(rwkv, state=first.state).read(" cat")
    assert_close(arrays(np.ones(1), moved.state), arrays(np.ones(1), first.read(" cat").state))


def test_writing_needs_a_token(rwkv):
    with pytest.raises(ValueError, match="call read"):
        Session(rwkv).write(3)


WAYS = ["close", "exception", "state", "fork", "read"]


@pytest.mark.on("torch")
@pytest.mark.parametrize("way", WAYS)
def test_left_in_the_middle(rwkv, way):
    """However writing is left, the session has read what was handed out, and goes on bit for bit as if no more had been
    asked for.
    """
    left, exact = (Session(rwkv, sampling=SAMPLING, seed=5).read("The cat") for _ in range(2))
    stream, given = left.stream(20), ""
    for _ in range(4):
        given += next(stream)
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "exception":
        with pytest.raises(KeyError):
            for piece in stream:
                given += piece
                raise KeyError
    elif way == "state":
        assert left.state is not None
        given += next(stream)  # looking at the state leaves nothing
    written = exact.write(len(stream.pieces.ids))
    assert written == given
    if way == "fork":
        other, left = left, left.fork()
        other.write(3)
    elif way == "read":
        for session in (left, exact):
            session.read(" and")
    for got, want in zip(arrays(np.ones(1), left.state), arrays(np.ones(1), exact.state), strict=True):
        np.testing.assert_array_equal(got, want)
    assert left.write(9) == exact.write(9)


def test_one_user_at_a_time(rwkv):
    """A stream that the session has left behind does not go on; a second thread at the same moment is refused."""
    session = Session(rwkv, sampling=SAMPLING, seed=5).read("The cat")
    first = session.stream(20)
    next(first)
    session.read(" and")
    with pytest.raises(RuntimeError, match="used since"):
        next(first)
    with session._alone(), pytest.raises(RuntimeError, match="Another thread"):
        session.read("x")


def test_a_stop_text_ends_a_turn(rwkv):
    """The next turn goes on from the text before the stop."""
    session, plain = (Session(rwkv, sampling=SAMPLING, seed=5).read("The cat") for _ in range(2))
    text = plain.fork().write(20)
    stop = text[9:11]
    assert session.write(20, stop_texts=stop) == text[: text.index(stop)]
    plain.write(len(session._writing.pieces.ids))
    assert session.read("!").write(5) == plain.read("!").write(5)
