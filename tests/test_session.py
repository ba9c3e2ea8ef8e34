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
    return small_model(vocab_size=257, tokenizer=RWKV_TOKENIZER.from_entries(letters), mask_output=[0])


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


def test_a_state_moves_between_sessions(rwkv):
    first = Session(rwkv).read("A large")
    moved = Session(rwkv, state=first.state).read(" cat")
    assert_close(arrays(np.ones(1), moved.state), arrays(np.ones(1), first.read(" cat").state))


def test_writing_needs_a_token(rwkv):
    with pytest.raises(ValueError, match="call read"):
        Session(rwkv).write(3)
