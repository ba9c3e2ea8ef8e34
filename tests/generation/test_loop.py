"""Generation in a compiled loop is what a plain loop over one row at a time writes."""

import keras
import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.generation import loop
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.ops.compile import compiled
from tests.generation import toy

L = 20
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [], [11] * L, [1, 0, 2]]
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0.8),
    Sampling(top_p=0.8, top_k=6),
    Sampling(mask_output=[0, 7]),
    Sampling(newline_id=4, newline_lengths=(3, 6), no_repeat=(0, 2, 5, 9, 11, 12)),
]


@pytest.fixture(scope="module")
def net():
    return toy.Toy()


def padded(rows, length=L):
    ids = np.zeros((len(rows), length), "int32")
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.array([len(row) for row in rows], "int32")


def seeds_of(rows, seed=5, before=0):
    return np.stack([seed + np.arange(rows), np.full(rows, before)], 1).astype("int32")


class Loop:
    """A compiled `generate` for one sampling; counts how often it is traced."""

    def __init__(self, net, sampling, ends=(), chunks=(8, 3)):
        self.net, self.sampling, self.traces = net, sampling, 0

        def run(ids, length, limit, state, seeds, values):
            self.traces += 1
            return loop.generate(net, sampling.plan(), ends, ids, length, limit, state, seeds, values, chunks)

        self.run = compiled(run, lambda: net.variables)

    def __call__(self, rows, limit=L, state=None, seeds=None, length=L):
        ids, count = padded(rows, length)
        batch = len(rows)
        state = self.net.start(batch) if state is None else state
        seeds = seeds_of(batch) if seeds is None else seeds
        limit = np.broadcast_to(np.asarray(limit, "int32"), (batch,))
        return self.run(ids, count, limit, state, seeds, self.sampling.values(batch))


def texts(carry):
    ids, position = ops.convert_to_numpy(carry.ids), ops.convert_to_numpy(carry.position)
    return [row[:count].tolist() for row, count in zip(ids, position, strict=True)]


def check_state(carry, plains):
    """The state of every row. 1e-5: float32 sums in another order."""
    for name in ("x", "previous"):
        want = np.stack([getattr(plain, name) for plain in plains])
        np.testing.assert_allclose(ops.convert_to_numpy(carry.state[name]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampling", "ends"),
    [
        (SAMPLINGS[0], ()),
        (SAMPLINGS[0], (4, 12)),
        (SAMPLINGS[1], ()),
        (SAMPLINGS[2], (4,)),
        (SAMPLINGS[3], (4, 12)),
        (SAMPLINGS[4], ()),
    ],
    ids=["greedy", "greedy, ends", "warm", "top, end", "masked, ends", "paced"],
)
def test_ragged_batch_is_row_by_row(net, sampling, ends):
    """Texts, zeros behind them, states that have consumed all but the last token, and seeds that count."""
    carry = Loop(net, sampling, ends)(PROMPTS)
    want = [toy.generate(net, row, L, sampling, 5 + i, ends) for i, row in enumerate(PROMPTS)]
    assert texts(carry) == [ids for ids, _ in want]
    np.testing.assert_array_equal(ops.convert_to_numpy(carry.ids), padded([ids for ids, _ in want])[0])
    check_state(carry, [plain for _, plain in want])
    written = [len(ids) - len(row) for (ids, _), row in zip(want, PROMPTS, strict=True)]
    np.testing.assert_array_equal(ops.convert_to_numpy(carry.seeds), seeds_of(6) + np.array([[0, n] for n in written]))


def test_limits_and_prompt_lengths_share_one_program(net):
    """Any prompt length and any limit up to L: one trace."""
    run = Loop(net, SAMPLINGS[1])
    cases = [([[1], [2, 3]], [20, 20]), ([[1] * 19, [2] * 7], [20, 20]), ([[1] * 3, [4] * 9], [7, 12])]
    for rows, limits in cases:
        want = [toy.generate(net, rows[i], limits[i], SAMPLINGS[1], 5 + i)[0] for i in range(2)]
        assert texts(run(rows, limits)) == want
    if toy.traced():
        assert run.traces == 1


@pytest.mark.parametrize(
    ("sampling", "chunks"),
    [(SAMPLINGS[0], 4), (SAMPLINGS[1], 1), (SAMPLINGS[1], 64), (SAMPLINGS[2], (16, 5, 2))],
    ids=["greedy", "warm, 1", "warm, 64", "top, 16-5-2"],
)
def test_two_calls_are_one(net, sampling, chunks):
    """m tokens, state and seeds out and in, m more: the same ids and bit for bit the same state, also for rows that
    had no room in the first call."""
    run = Loop(net, sampling, chunks=chunks)
    rows = [row for row in PROMPTS if row]
    limits = np.array([min(len(row) + 4, L) for row in rows])
    whole = run(rows, np.minimum(limits + 3, L))
    first = run(rows, limits)
    again = [[row[-1]] for row in texts(first)]
    more = np.minimum(limits + 3, L) - limits
    second = run(again, 1 + more, first.state, ops.convert_to_numpy(first.seeds))
    assert [a + b[1:] for a, b in zip(texts(first), texts(second), strict=True)] == texts(whole)
    for name in ("x", "previous"):
        np.testing.assert_array_equal(ops.convert_to_numpy(second.state[name]), ops.convert_to_numpy(whole.state[name]))
    np.testing.assert_array_equal(ops.convert_to_numpy(second.seeds), ops.convert_to_numpy(whole.seeds))


def test_steps_one_by_one_are_the_loop(net):
    """Streaming: `begin`, then the same `advance` until no row lives."""
    sampling = Sampling(top_p=0.9, penalty=1.3)
    plan, values, rows = sampling.plan(), sampling.values(2), [[1, 2, 3], [4]]
    ids, length = padded(rows)
    begin = compiled(lambda *args: loop.begin(net, *args, chunks=4), lambda: net.variables)
    step = compiled(lambda carry: loop.advance(net, plan, (7,), carry, values), lambda: net.variables)
    carry, seen = begin(ids, length, np.array([9, 12], "int32"), net.start(2), seeds_of(2)), [list(row) for row in rows]
    while ops.convert_to_numpy(carry.live).any():
        live = ops.convert_to_numpy(carry.live)
        carry = step(carry)
        for row, token, went in zip(seen, ops.convert_to_numpy(carry.token), live, strict=True):
            row.extend([int(token)] if went else [])
    assert seen == texts(carry) == texts(Loop(net, sampling, (7,))(rows, [9, 12]))


def test_rows_do_not_know_each_other(net):
    """A row's text is the same alone, in another place, and beside other rows."""
    sampling = SAMPLINGS[1]
    run, seeds = Loop(net, sampling), seeds_of(3)
    rows = [[1, 2], [3, 4, 5, 6, 7, 8, 9], [10]]
    together = texts(run(rows, seeds=seeds))
    turned = texts(run(rows[::-1], seeds=seeds[::-1].copy()))
    other = texts(run([rows[0], [5], [5, 5, 5]], seeds=seeds))
    assert together == turned[::-1] and other[0] == together[0]


def test_noise_is_new_at_each_step_and_same_for_a_seed(net):
    """Tokens of one text differ in noise: with flat logits every id comes, and not in one order for all seeds."""
    flat = toy.Toy(scale=0.0)
    run = Loop(flat, Sampling())
    first, again = run([[1]] * 4), run([[1]] * 4)
    assert texts(first) == texts(again)
    assert len({tuple(text) for text in texts(first)}) == 4
    assert all(len(set(text[1:])) > 8 for text in texts(first))


@pytest.mark.parametrize("window", [None, 5])
def test_penalties_see_prompt_and_answer(net, window):
    """Dialect 1 within the loop: the prompt counts, the padding does not."""
    sampling = Sampling(temperature=0, penalty=1.7, penalty_window=window, max_penalty_range=[1, 2])

    def penalise(logits, ids):
        begin = max(len(ids) // window - 1, 0) * window if window else 0
        n = np.minimum(np.bincount(ids[begin:], minlength=toy.V), 2)
        return np.where(logits > 0, logits / 1.7**n, logits * 1.7**n)

    rows = [[3, 1, 4], [0], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
    want = [toy.generate(net, row, L, sampling, penalise=penalise)[0] for row in rows]
    assert texts(Loop(net, sampling)(rows)) == want


def test_frequency_penalty_in_the_loop(net):
    """Dialect 2 within the loop: generated tokens only."""
    sampling = Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.7, penalty_decay=0.8, penalty_free=[3])
    row = [3, 1, 4, 1]

    def penalise(logits, ids):
        counts, logits = {}, logits.copy()
        for token in ids[len(row) :]:
            counts = {t: n * 0.8 for t, n in counts.items()}
            counts[token] = counts.get(token, 0) + (token != 3)
        for token, count in counts.items():
            logits[token] -= 0.5 + 0.7 * count
        return logits

    assert texts(Loop(net, sampling)([row])) == [toy.generate(net, row, L, sampling, penalise=penalise)[0]]


def test_front_pack():
    ids = np.array([[0, 0, 5, 6], [5, 0, 6, 0], [0, 0, 0, 0], [1, 2, 3, 4]], "int32")
    packed, count = compiled(lambda x: loop.front_pack(x, ops.not_equal(x, 0), -1))(ids)
    assert ops.convert_to_numpy(packed).tolist() == [[5, 6, -1, -1], [5, 6, -1, -1], [-1] * 4, [1, 2, 3, 4]]
    assert ops.convert_to_numpy(count).tolist() == [2, 2, 0, 4]


@pytest.mark.parametrize("chunks", [3, (8, 3), 50])
def test_prefill_consumes_exactly_its_length(net, chunks):
    """State and last hidden vector for ragged lengths; the hidden vector of an empty row is the one given."""
    rows = [[3, 1, 4, 1, 5], [], [2] * 8, [1] * 11]
    ids, length = padded(rows)
    before = np.full((4, toy.D), 9, "float32")
    run = compiled(lambda i, n, s, h: loop.prefill(net, i, n, s, chunks, h), lambda: net.variables)
    hidden, state = run(ids, length, net.start(4), before)
    plains = [toy.Plain(net) for _ in rows]
    logits = [[plain.read(token) for token in row][-1:] for plain, row in zip(plains, rows, strict=True)]
    check_state(loop.Carry(*[None] * 7, state, None), plains)
    assert ops.convert_to_numpy(hidden)[1].tolist() == [9] * toy.D
    got = ops.convert_to_numpy(net.logits(hidden))
    for i in (0, 2, 3):
        np.testing.assert_allclose(got[i], logits[i][0], rtol=1e-4, atol=1e-4)


@pytest.mark.backend_free
@pytest.mark.parametrize("chunks", [0, (), (8, 16), 2.5])
def test_bad_chunks(chunks):
    with pytest.raises(ValueError, match=r"`chunks` is.*Received.*Use"):
        loop._sizes(chunks, 20)


@pytest.fixture
def bfloat16():
    before = keras.config.floatx()
    keras.config.set_floatx("bfloat16")
    yield
    keras.config.set_floatx(before)


def test_floatx_does_not_reach_the_draw(net, bfloat16):
    """With floatx bfloat16 Keras rounds what it makes of Python numbers; logits, noise and ids must not feel it."""
    sampling = Sampling(temperature=0.8, top_p=0.9, penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1)
    rows, state = [[1, 2, 4], [9] * 9], {name: ops.zeros((2, toy.D), "float32") for name in ("x", "previous")}
    rounded = texts(Loop(net, sampling)(rows, state=state))
    keras.config.set_floatx("float32")
    assert texts(Loop(net, sampling)(rows, state=state)) == rounded


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="compiles with TensorFlow's XLA")
def test_xla_of_tensorflow_writes_the_same(net):
    """Keras compiles with XLA where there is a GPU: loops, noise and scatters must allow it."""
    import tensorflow as tf

    sampling = Sampling(top_p=0.9, penalty=1.3, penalty_window=5, presence_penalty=0.2, frequency_penalty=0.1)
    own = Loop(net, sampling, (7,))
    args = (*padded([[1, 2, 4], [], [9] * 9]), np.full(3, L, "int32"), net.start(3), seeds_of(3), sampling.values(3))

    def run(*args):
        return loop.generate(net, sampling.plan(), (7,), *args, (8, 3))

    carry = tf.function(run, jit_compile=True)(*tf.nest.map_structure(tf.convert_to_tensor, args))
    assert texts(carry) == texts(own([[1, 2, 4], [], [9] * 9]))
