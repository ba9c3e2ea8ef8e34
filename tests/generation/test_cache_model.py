"""The Keras model of `build_cache_model`: paddings, states and seeds in and out, one compilation."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.generation.cache_model import cache_model
from bert4keras_rwkv.generation.sampling import Sampling
from tests.generation import toy

L = 12
GREEDY, WARM = Sampling(temperature=0), Sampling(temperature=0.8, mask_output=[0])
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7], [], [11] * L]


@pytest.fixture(scope="module")
def net():
    return toy.Toy()


def model(net, sampling=WARM, end_token=None, length=L, **options):
    return cache_model(net, length, end_token, sampling, toy.V, toy.WKV, toy.SHIFT, chunks=(4, 2), **options)


def padded(rows, side, length=L):
    """Prompts with zeros behind them, before them, or spread between them."""
    ids = np.zeros((len(rows), length), "int32")
    for i, row in enumerate(rows):
        free = length - len(row)
        places = {"right": range(len(row)), "left": range(free, length), "holes": range(0, 2 * len(row), 2)}[side]
        ids[i, list(places) if max(places, default=0) < length else list(range(free, length))] = row
    return ids


def numpy(outputs):
    return (
        [ops.convert_to_numpy(x) for x in outputs]
        if isinstance(outputs, list | tuple)
        else ops.convert_to_numpy(outputs)
    )


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_any_padding_predicts_the_plain_texts(net, sampling):
    """Rows continue after their own last real token; an end token ends a row, one in the prompt does not."""
    generator = model(net, sampling, end_token=[5, 17], seed=3)
    want = padded([toy.generate(net, row, L, sampling, 3 + i, (5, 17))[0] for i, row in enumerate(PROMPTS)], "right")
    for side in ("right", "left", "holes"):
        np.testing.assert_array_equal(generator.predict([padded(PROMPTS, side)], verbose=0), want)
    np.testing.assert_array_equal(numpy(generator(padded(PROMPTS, "left"))), want)


def test_state_out_and_in_goes_on(net):
    """Equality 4: 2m tokens are m tokens, state and seeds out, state and seeds in, m more; full rows too."""
    rows = [row for row in PROMPTS if row]
    seeds = np.stack([np.arange(4), np.zeros(4)], 1).astype("int32")
    options = {"input_state": True, "output_state": True, "input_seed": True}
    short, long = model(net, length=L, **options), model(net, length=2 * L, **options)
    empty = [np.zeros((4, *toy.WKV), "float32"), np.zeros((4, *toy.SHIFT), "float32")]
    first = numpy(short.predict([padded(rows, "left"), *empty, seeds], verbose=0))
    second = numpy(short([padded([[row[-1]] for row in first[0]], "right"), *first[1:]]))
    whole = numpy(long.predict([padded(rows, "right", 2 * L), *empty, seeds], verbose=0))
    np.testing.assert_array_equal(np.concatenate([first[0], second[0][:, 1:]], 1), whole[0][:, : 2 * L - 1])
    np.testing.assert_array_equal(second[3], [[i, 23 - len(row)] for i, row in enumerate(rows)])
    plains = [toy.generate(net, row, 2 * L - 1, WARM, i)[1] for i, row in enumerate(rows)]
    np.testing.assert_allclose(second[1].reshape(4, -1), [plain.x for plain in plains], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second[2].reshape(4, -1), [plain.previous for plain in plains], rtol=1e-5, atol=1e-5)


def test_empty_row_returns_its_state(net):
    generator = model(net, input_state=True, output_state=True)
    wkv, shift = np.ones((2, *toy.WKV), "float32"), np.full((2, *toy.SHIFT), 2, "float32")
    got = numpy(generator.predict([padded([[], [1]], "left"), wkv, shift], verbose=0))
    assert not got[0][0].any() and (got[1][0] == 1).all() and (got[2][0] == 2).all()
    one = numpy(generator([padded([[], [1]], "left"), wkv[:1], shift[:1]]))
    np.testing.assert_array_equal(one[1][0], wkv[0])


def test_inputs_and_outputs_are_named(net):
    generator = model(net, input_state=True, output_state=True, input_seed=True)
    assert [x.name for x in generator.inputs] == ["Input-Token", "Stack-States", "Stack-Last-X", "Seeds"]
    assert [x.shape for x in generator.outputs] == [(None, L), (None, *toy.WKV), (None, *toy.SHIFT), (None, 2)]
    assert len(model(net).inputs) == len(model(net).outputs) == 1


def test_a_remainder_and_other_lengths_compile_nothing(net):
    """predict on 7 rows in batches of 3, then other prompts: the step is traced for one program."""
    generator = model(net, GREEDY)
    rows = PROMPTS + [[7, 7], [8]]
    want = padded([toy.generate(net, row, L, GREEDY)[0] for row in rows], "right")
    np.testing.assert_array_equal(generator.predict([padded(rows, "left")], batch_size=3, verbose=0), want)
    traces = net.traces
    np.testing.assert_array_equal(generator.predict([padded(rows[::-1], "left")], batch_size=3, verbose=0), want[::-1])
    generator(padded(rows[:3], "right"))
    traced_directly = net.traces
    generator(padded(rows[2:5], "right"))
    if toy.traced():
        assert net.traces == traced_directly
        assert traces == net.traces - (traced_directly - traces)


def test_seeds(net):
    """None: new texts at every call. An int: the same ones, (seed + row, 0), however the rows are cut into batches."""
    rows = [[1]] * 6
    free, fixed = model(net), model(net, seed=2**32 + 4)
    drawn = [numpy(free(padded(rows, "left"))), free.predict(padded(rows, "left"), verbose=0)]
    drawn.append(free.predict(padded(rows, "left"), verbose=0, batch_size=2))
    assert len({text.tobytes() for batch in drawn for text in batch}) == 18
    want = padded([toy.generate(net, row, L, WARM, 4 + i)[0] for i, row in enumerate(rows)], "right")
    for size in (None, 4):
        np.testing.assert_array_equal(fixed.predict(padded(rows, "left"), batch_size=size, verbose=0), want)
    np.testing.assert_array_equal(numpy(fixed(padded(rows, "left"))), want)


@pytest.mark.parametrize("pad", [-1, toy.V, toy.V + 3])
def test_another_pad_id(net, pad):
    """With a pad that is no id every id is an ordinary token, 0 too; what follows the end is the pad. Presence is
    subtracted from what the row itself wrote.
    """
    sampling = Sampling(temperature=0.8, presence_penalty=0.5)
    generator = model(net, sampling, end_token=5, pad_token_id=pad, seed=0)
    ids = np.full((2, L), pad, "int32")
    ids[0, :3], ids[1, 5:] = [0, 1, 0], [0, 0, 3, 0, 1, 2, 0]
    rows = [[0, 1, 0], [0, 0, 3, 0, 1, 2, 0]]

    def penalised(row):
        return lambda logits, text: logits - 0.5 * np.isin(np.arange(toy.V), text[len(row) :])

    want = [toy.generate(net, row, L, sampling, i, (5,), penalise=penalised(row))[0] for i, row in enumerate(rows)]
    want = [row + [pad] * (L - len(row)) for row in want]
    assert generator.predict(ids, verbose=0).tolist() == want


def test_two_models_of_one_network_stand_side_by_side(net):
    one, other = model(net, GREEDY), model(net, GREEDY, length=2 * L, end_token=1)
    assert numpy(one(padded([[3]], "left"))).shape == (1, L)
    assert numpy(other(padded([[3]], "left", 2 * L))).shape == (1, 2 * L)
    assert numpy(one(padded([[3]], "left"))).shape == (1, L)


def test_weights_are_arguments(net):
    """New weights are used at the next call: nothing was baked into the program."""
    own = toy.Toy(seed=1)
    generator = model(own, GREEDY)
    before = numpy(generator(padded([[3]], "left")))
    own.head.assign(-own.head.value)
    after = numpy(generator(padded([[3]], "left")))
    assert after.tolist() == padded([toy.generate(own, [3], L, GREEDY)[0]], "right").tolist() != before.tolist()


def test_progress_goes_to_stderr(net, capfd):
    generator = model(net, GREEDY, progress_print=True)
    generator(padded([[3], [1, 2]], "left"))
    shown = capfd.readouterr()
    assert shown.out == "" and "11 tokens" in shown.err and shown.err.endswith("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_token_id": None}, "pad_token_id=-1"),
        ({"length": 0}, "Received: 0"),
        ({"end_token": "stop"}, "`end_token`.*Use None"),
        ({"sampling": Sampling(penalty=1.2, penalty_window=5)}, "multiple of `penalty_window`"),
    ],
)
def test_bad_options(net, options, message):
    with pytest.raises(ValueError, match=message):
        model(net, **options)


@pytest.mark.parametrize("shape", [(0, 12), (2, 13), (2, 5)])
@pytest.mark.parametrize("ask", ["predict", "__call__"])
def test_other_shapes_are_refused(net, shape, ask):
    """No row, or prompts longer or shorter than the buffer: never answered with something else, and nothing hangs."""
    model = cache_model(net, 12, None, Sampling(temperature=0), toy.V, toy.WKV, toy.SHIFT)
    with pytest.raises(ValueError, match=r"`Input-Token` is \(B, 12\), with at least one row"):
        getattr(model, ask)([np.ones(shape, "int32")])
