"""A `Sampling` says what is wrong with it, and what of it is structure and what is a number."""

import numpy as np
import pytest

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 2.0},
        {"top_k": True},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"penalty": 0.0},
        {"penalty_window": 0},
        {"max_penalty_range": [5, 2]},
        {"max_penalty_range": 3},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": 1e39},
        {"temperature": 1e300},
        {"frequency_penalty": None},
        {"penalty_decay": 1.5},
        {"penalty_free": [-1]},
        {"mask_output": [0.5]},
        {"no_repeat": [-1]},
        {"newline_id": -1},
        {"newline_lengths": (9, 5)},
    ],
    ids=str,
)
def test_bad_fields_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` .*Received: {name}=.*Use"):
        Sampling(**options)


def test_lists_become_hashable():
    sampling = Sampling(max_penalty_range=[2, 5], mask_output=[0, 3], penalty_free=np.array([1]))
    assert hash(sampling.plan()) == hash(
        Sampling(max_penalty_range=(2, 5), mask_output=(0, 3), penalty_free=(1,)).plan()
    )


def test_numbers_are_not_part_of_the_plan():
    """Programs are compiled for a plan: another temperature, p, k, penalty or window needs no other one."""
    one = Sampling(temperature=0.5, top_p=0.9, top_k=40, penalty=1.2, presence_penalty=0.1, penalty_decay=0.9)
    other = Sampling(temperature=1.5, top_p=0.4, top_k=21, penalty=1.5, frequency_penalty=0.3, penalty_window=9)
    assert one.plan() == other.plan()
    assert Sampling(top_k=1000).plan() == Sampling(top_k=70_000).plan() != one.plan()
    counts = [(values["top_k"][0], values["penalty_window"][0]) for values in (other.values(1), Sampling().values(1))]
    assert counts == [(21, 9), (2**31 - 1, 2**31 - 1)]
    assert Sampling(temperature=0, top_k=5, top_p=0.5).plan() == Sampling(temperature=0).plan()
    assert Sampling().plan() != Sampling(top_p=0.5).plan()
    assert one.values(3)["penalty"].tolist() == pytest.approx([1.2] * 3)


def test_what_is_not_paced_is_handed_nothing_more():
    """Another newline, other lengths and ids: the same program; none of them: the values that there always were."""
    one, other = (
        Sampling(newline_id=3, no_repeat=(1, 2)),
        Sampling(newline_id=5, newline_lengths=(1, 2), no_repeat=[7] * 4),
    )
    assert one.plan() == other.plan() != Sampling().plan()
    assert set(one.values(1)) - set(Sampling().values(1)) == {"newline", "no_repeat"}
    assert one.values(2)["newline"].tolist() == [[3, 40, 150]] * 2
    assert one.values(1)["no_repeat"].tolist() == [[1, 2, -1, -1]]
    with pytest.raises(ValueError, match="`newline_id` holds ids of the vocabulary, 0 to 2"):
        one.check(3, 0)


def test_chatrwkvs_rules_for_a_vocabulary():
    """Marks that are several tokens are left out."""
    tokenizer = RWKV_TOKENIZER.from_entries({byte + 1: bytes([byte]) for byte in range(256)} | {300: "，".encode()})
    assert Sampling(top_p=0.5).paced(tokenizer) == Sampling(top_p=0.5, newline_id=11, no_repeat=(300,))
    assert Sampling(no_repeat=(5,)).paced(tokenizer, newline=False) == Sampling(no_repeat=(5, 300))
    assert Sampling().paced(tokenizer, newline=False, marks=False) == Sampling()


def test_names_of_keras_hub():
    assert Sampling.named("greedy", top_p=0.5).plan().greedy
    assert Sampling.named("top_k") == Sampling(top_k=5)
    assert Sampling.named("top_p", temperature=0.5) == Sampling(temperature=0.5, top_p=0.1)
    with pytest.raises(ValueError, match=r"'greedy', 'top_k', 'top_p'.*Received: 'beam'"):
        Sampling.named("beam")


def test_search_modes():
    assert Sampling.from_search_mode("greedy", 1, temperature=0.5).temperature == 0
    assert Sampling.from_search_mode("topk", 40, temperature=0.5) == Sampling(temperature=0.5, top_k=40)
    assert Sampling.from_search_mode("topp", 0.7) == Sampling(top_p=0.7)
    assert Sampling.from_search_mode("topp", [0.7, 40]) == Sampling(top_p=0.7, top_k=40)
    assert Sampling.from_search_mode("topp", np.float32(0.5)) == Sampling(top_p=0.5)


@pytest.mark.parametrize(
    ("mode", "k"),
    [("topk", 1), ("topk", 2.0), ("topk", True), ("topk", [0.5, 3]), ("topp", 1), ("topp", 0.0), ("topp", 1.5)]
    + [("topp", [0.5]), ("topp", [0.5, 0]), ("topp", [40, 0.5]), ("topp", "0.5")],
)
def test_bad_k_is_named(mode, k):
    with pytest.raises(ValueError, match=r"search_mode='top.'.*Received: k=.*Use"):
        Sampling.from_search_mode(mode, k)


def test_unknown_mode_names_those_that_exist():
    with pytest.raises(ValueError, match=r"'greedy', 'topk', 'topp'.*Received: search_mode='beam'"):
        Sampling.from_search_mode("beam")


def test_check_against_a_model():
    Sampling(penalty=1.1, penalty_window=4, mask_output=[9]).check(10, 12)
    Sampling(penalty_window=5).check(10, 12)  # without a penalty the window means nothing
    with pytest.raises(ValueError, match=r"multiple of `penalty_window`.*length 12, penalty_window=5.*15"):
        Sampling(penalty=1.1, penalty_window=5).check(10, 12)
    with pytest.raises(ValueError, match=r"`mask_output`.*0 to 9.*\[10, 99\]"):
        Sampling(mask_output=[3, 10, 99]).check(10, 12)
    with pytest.raises(ValueError, match="at least one"):
        Sampling(mask_output=range(10)).check(10, 12)
