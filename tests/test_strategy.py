"""Strategies are read as the `rwkv` package reads its strings, and what is wrong is told by its word."""

import pytest

from bert4keras_rwkv.strategy import Part, Strategy

pytestmark = pytest.mark.backend_free

BLOCKS = 24  # so 25 with the head, as in the text of the `rwkv` package
# Its published examples: how many blocks stay on the device of each part, and how many are streamed to it.
PUBLISHED = {
    "cpu fp32": [(25, 0)],
    "cuda fp16": [(25, 0)],
    "cuda fp16i8": [(25, 0)],
    "cpu bf16": [(25, 0)],
    "cpu fp32i8": [(25, 0)],
    "cuda fp16i8 *10 -> cpu fp32": [(10, 0), (15, 0)],
    "cuda:0 fp16 *10 -> cuda:1 fp16 *8 -> cpu fp32": [(10, 0), (8, 0), (7, 0)],
    "cuda fp16i8 *1 -> cuda fp16": [(1, 0), (24, 0)],
    "cuda fp16i8 -> cpu fp32 *1": [(24, 0), (1, 0)],
    "cuda fp16i8 -> cpu fp32 *3": [(22, 0), (3, 0)],
    "cuda fp16i8 *10+": [(10, 15)],
    "cuda fp16i8 *0+ -> cpu fp32 *1": [(0, 24), (1, 0)],
}
OTHERS = {
    "cuda fp16 *20": [(25, 0)],  # what no part has goes to the last
    "cuda fp16 *20 -> cpu fp32 *2": [(20, 0), (5, 0)],
    "cuda:0 fp16 -> cuda:1 fp16 -> cpu fp32 *2": [(11, 0), (12, 0), (2, 0)],  # 23 in equal shares
    "cuda fp16 *30 -> cpu fp32 *4": [(25, 0), (0, 0)],
    "cuda fp16i8 *40+": [(25, 0)],
    "cpu fp32 *3 -> cuda bf16i4 *2+": [(3, 0), (2, 20)],
    "mps fp16": [(25, 0)],
}


@pytest.mark.parametrize(("text", "counts"), [*PUBLISHED.items(), *OTHERS.items()])
def test_strings_of_the_rwkv_package(text, counts):
    strategy = Strategy.of(text)
    assert strategy.counts(BLOCKS) == counts
    assert len(strategy.places(BLOCKS)) == BLOCKS + 1
    assert str(strategy) == text and Strategy.of(str(strategy)) == strategy == Strategy.of(strategy)


def test_what_a_place_is():
    places = Strategy.of("cuda:1 fp16i8 *2+ -> cpu bf16i4 *1").places(3)
    assert [(p.device, p.dtype, p.stored, p.streamed) for p in places] == [
        ("cuda:1", "float16", "int8", False),
        ("cuda:1", "float16", "int8", False),
        ("cuda:1", "float16", "int8", True),
        ("cpu", "bfloat16", "int4", False),
    ]
    assert not Strategy.of("cuda fp16 *0+").places(3)[-1].streamed  # the head


def test_spaces_do_not_matter():
    assert str(Strategy.of("  cuda  fp16i8   *20->cpu fp32 ")) == "cuda fp16i8 *20 -> cpu fp32"


def test_auto():
    assert Strategy.of("auto") == Strategy() and Strategy().is_auto and str(Strategy()) == "auto"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "ends where there has to be a device: cpu, cuda, mps"),
        ("cuda", "ends where there has to be a dtype: fp32, fp16 or bf16"),
        ("gpu fp16", "word 1 is 'gpu'. There can be a device"),
        ("dml fp16", "word 1 is 'dml'. There can be a device"),
        ("cuda:x fp16", "word 1 is 'cuda:x'. There can be a device"),
        ("cuda fp17", "word 2 is 'fp17'. There can be a dtype"),
        ("cuda fp16i3", "word 2 is 'fp16i3'. There can be a dtype"),
        ("fp16 cuda", "word 1 is 'fp16'. There can be a device"),
        ("auto fp16", "word 1 is 'auto'. There can be a device: cpu, cuda, mps, or one of several, cuda:1, or 'auto'"),
        ("cuda fp16 20", "word 3 is '20'. There can be a count, *20, or *20+ where"),
        ("cuda fp16 *x", "word 3 is '*x'. There can be a count"),
        ("cuda fp16 *2 cpu fp32", "word 4 is 'cpu'. There can be '->' and another part"),
        ("cuda fp16 *2 ->", "ends where there has to be a device"),
        ("cuda fp16 -> auto", "word 4 is 'auto'. There can be a device: cpu, cuda, mps, or one of several, cuda:1."),
        ("cuda fp16 *1+ -> cuda:1 fp16 *1+", "one part is streamed, with a '+', not several"),
    ],
)
def test_what_is_wrong_is_told_by_its_word(text, told):
    with pytest.raises(ValueError, match="Strategy ") as error:
        Strategy.of(text)
    assert told in str(error.value)


def test_other_values():
    with pytest.raises(TypeError, match="`strategy` is a string"):
        Strategy.of(3)
    with pytest.raises(ValueError, match="`dtype` is"):
        Part("cpu", "fp32")
    with pytest.raises(ValueError, match="how many blocks stay"):
        Part("cpu", streamed=True)
    with pytest.raises(ValueError, match="how many blocks stay"):
        Part("cpu", count=-1)
