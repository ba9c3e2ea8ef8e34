"""A network run block by block is the network: equal blocks share a program, and each computes with its own weights."""

import keras
import numpy as np
import pytest

from bert4keras_rwkv.models import blocks
from bert4keras_rwkv.models.blocks import Blocks
from bert4keras_rwkv.state import RWKVState
from tests.models.small import small_model

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX runs a network block by block")


def programs(run):
    return len({id(call) for call in run._calls})


def states(state):
    return [np.asarray(leaf) for leaf in keras.tree.flatten(state)]


@pytest.mark.parametrize(("version", "count"), [("4", 1), ("5.2", 1), ("6", 1), ("7", 2)])
def test_it_reads_as_the_network_does(version, count):
    """1e-5 of the largest: XLA orders float32 sums otherwise in a longer program. Rows of 0, 3 and 40 tokens."""
    rwkv = small_model(version, num_hidden_layers=3)
    run = Blocks(rwkv.backbone)
    assert programs(run) == count
    ids = np.arange(3 * 64, dtype="int32").reshape(3, 64) % rwkv.config.vocab_size
    length = np.array([0, 3, 40], "int32")
    start = RWKVState.zeros(rwkv.config, 3)
    state = run.prefill(ids, length, run.unpack(start.wkv, start.shift))
    x, state = run.read(ids[:, 0], state, np.array([True, False, True]))
    present = np.arange(41) < np.array([1, 3, 41])[:, None]
    given = np.concatenate([ids[:, :40], ids[:, :1]], axis=1)
    want, expected = rwkv.backbone.hidden(given, rwkv.backbone.start(3), present)
    read = zip([x[0, 0], x[2, 0], *states(state)], [want[0], want[2], *states(expected)], strict=True)
    for here, there in read:
        np.testing.assert_allclose(here, there, atol=1e-5 * max(1, np.abs(there).max()))


def test_blocks_that_differ_share_nothing():
    """What was changed of one block's layers is no part of its weights' shapes."""
    rwkv = small_model(num_hidden_layers=3)
    rwkv.backbone.blocks[2].ln1.epsilon *= 10
    assert programs(Blocks(rwkv.backbone)) == 2
    rwkv.enable_lora(2)
    rwkv.backbone.blocks[1].time_mix.key.lora_alpha *= 2
    assert programs(Blocks(rwkv.backbone)) == 3


@pytest.mark.parametrize("version", ["6", "7"])
def test_what_is_written_is_the_same(version, monkeypatch):
    options = {"sampling": "greedy", "stop_token_ids": None, "return_state": True}
    prompts = [[1, 2, 3], list(range(1, 40))]
    whole, state = small_model(version).generate(prompts, 50, **options)
    monkeypatch.setattr(blocks, "NARROWEST", 1)
    rwkv = small_model(version)
    ids, after = rwkv.generate(prompts, 50, **options)
    assert [list(row) for row in ids] == [list(row) for row in whole]
    np.testing.assert_allclose(after.wkv, state.wkv, atol=1e-4)
    alone, one = rwkv.generate(prompts[0], 50, **options)
    *streamed, last = rwkv.stream(prompts[0], 50, **options)
    assert [*prompts[0], *streamed] == list(alone)
    np.testing.assert_array_equal(last.wkv, one.wkv)


def test_a_description_says_what_its_programs_depend_on():
    """Equal models have one, whatever their weights; what changes what is computed changes it."""

    def described(change=lambda rwkv: None, **options):
        rwkv = small_model(**options)
        change(rwkv)
        return repr(rwkv.backbone.description())

    one = described()
    assert described(seed=1) == one

    def lora(alpha):
        return lambda rwkv: rwkv.enable_lora(2, alpha)

    others = [
        described(dtype="bfloat16"),
        described(dtype="mixed_bfloat16"),
        described(kernel="loop"),
        described(rescale_layer=1),
        described(group_norm_epsilon=1e-3),
        described(version="7"),
        described(lora(2)),
        described(lora(4)),
        described(lambda rwkv: rwkv.enable_state_tuning()),
        described(lambda rwkv: rwkv.backbone.blocks[0].time_mix.key.quantize("int8")),
    ]
    assert len({one, *others}) == len(others) + 1
