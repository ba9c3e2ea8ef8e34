"""Whoever shares a batch does not notice: texts are those computed alone, whoever joins, leaves, or fails."""

import contextlib
import dataclasses
import threading

import jax
import numpy as np
import pytest

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models import rows
from bert4keras_rwkv.models.request import seeds
from bert4keras_rwkv.server.asked import Asked, Done, Failed, Piece
from bert4keras_rwkv.server.scheduler import ClosedError, FullError, Scheduler
from tests.server.models import endless
from tests.test_chat import talker

jax_only = pytest.mark.on("jax")
WAYS = [
    Sampling(temperature=0),
    Sampling(temperature=1.3),
    Sampling(temperature=0.9, top_k=5),
    Sampling(temperature=1.2, top_p=0.4),
    Sampling(temperature=0.8, top_p=0),
    Sampling(temperature=1.1, top_k=7, top_p=0.7, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(temperature=0, frequency_penalty=1.5),
    Sampling(temperature=0.7, presence_penalty=0.4, frequency_penalty=0.6, penalty_decay=0.9),
]
PROMPTS = ["a", "once more", "x" * 40 + "!", "What?" * 70]


class Heard:
    """Takes the events of one ticket."""

    def __init__(self, answers=1, told=lambda event: None):
        self._told, self.events, self.texts, self.ended = told, [], [""] * answers, threading.Semaphore(0)

    def __call__(self, event):
        self._told(event)
        self.events.append(event)
        if isinstance(event, Piece):
            self.texts[event.answer] += event.text
        else:
            self.ended.release()

    def wait(self):
        for _ in self.texts:
            if not self.ended.acquire(timeout=60):
                raise TimeoutError("An answer did not end.")
        return self.texts


@pytest.fixture(scope="module")
def rwkv():
    return talker()


@pytest.fixture(scope="module")
def scheduler(rwkv):
    scheduler = Scheduler(rwkv, max_batch=6, queue=100)
    scheduler.start()
    yield scheduler
    scheduler.stop()


def asked(rwkv, prompt="a", limit=24, sampling=WAYS[0], seed=3, n=1, stops=()):
    return Asked(tuple(rwkv.tokenizer.encode(prompt)), seeds(seed, n), limit, sampling, stops)


def submitted(scheduler, *args, **options):
    one = asked(scheduler, *args, **options)
    heard = Heard(len(one.seeds))
    return heard, scheduler.submit(one, heard)


@pytest.mark.on("jax", "torch")
def test_a_text_does_not_depend_on_who_else_is_there(rwkv, scheduler):
    """Every way of drawing at once, of prompts that are read meanwhile: the texts of `generate`, one at a time."""
    cases = [(PROMPTS[i % 4], 5 + 7 * i % 31, way, i) for i, way in enumerate(WAYS * 3)]
    heard = [submitted(scheduler, *case)[0] for case in cases]
    for (prompt, limit, way, seed), one in zip(cases, heard, strict=True):
        alone = rwkv.generate(prompt, max_new_tokens=limit, sampling=way, seed=seed, strip_prompt=True)
        assert one.wait() == [alone]
        assert one.events[-1].reason in ("stop", "length")


@jax_only
def test_a_wide_network_that_runs_block_by_block_writes_the_same(rwkv, monkeypatch):
    """And it compiles nothing more, either."""
    monkeypatch.setattr(rows, "worthwhile", lambda network: True)
    scheduler = Scheduler(rwkv, max_batch=3)
    scheduler.start()
    with compilations() as seen:
        heard = [submitted(scheduler, PROMPTS[i % 4], 9 + 4 * i, way, i)[0] for i, way in enumerate(WAYS)]
        texts = [one.wait() for one in heard]
    assert not seen
    scheduler.stop()
    for i, (way, text) in enumerate(zip(WAYS, texts, strict=True)):
        options = {"max_new_tokens": 9 + 4 * i, "sampling": way, "seed": i, "strip_prompt": True}
        assert text == [rwkv.generate(PROMPTS[i % 4], **options)]


@jax_only
def test_answers_to_one_prompt_are_those_of_a_batch(rwkv, scheduler):
    alone = rwkv.generate(["once"] * 3, max_new_tokens=20, sampling=WAYS[1], seed=11, strip_prompt=True)
    assert submitted(scheduler, "once", 20, WAYS[1], 11, n=3)[0].wait() == alone
    assert len(set(alone)) == 3


@jax_only
def test_a_stop_text_ends_an_answer_and_is_not_shown(rwkv, scheduler):
    whole = rwkv.generate("a", max_new_tokens=24, sampling=WAYS[1], seed=3, strip_prompt=True)
    stop = whole[8:10]
    heard, _ = submitted(scheduler, "a", 24, WAYS[1], stops=(stop,))
    assert heard.wait() == [whole[: whole.index(stop)]]
    assert heard.events[-1].reason == "stop"


@contextlib.contextmanager
def compilations():
    """What JAX traces or compiles while it lasts, a list."""
    seen = []

    def listen(event, *_, **__):
        if "/jax/core/compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@jax_only
def test_nothing_compiles_while_serving(scheduler):
    """All sizes of batches and prompts, growing and shrinking. Everything traced or compiled is an event of JAX."""
    with compilations() as seen:
        for many in (1, 2, 3, 9, 1):
            heard = [submitted(scheduler, PROMPTS[i % 4], 3 + 5 * i, WAYS[i % 8], i)[0] for i in range(many)]
            for one in heard:
                one.wait()
        assert not seen
        jax.jit(lambda x: x * 3 + many)(np.ones(many + 12))
        assert seen  # the listener hears


@jax_only
def test_who_leaves_frees_the_row_before_the_next_token():
    scheduler = Scheduler(endless(), max_batch=2)
    scheduler.start()
    begun = threading.Event()
    ticket = scheduler.submit(asked(scheduler, "a", 10**6), lambda event: begun.set())
    assert begun.wait(60)
    ticket.leave()
    steps = scheduler.figures.steps
    assert submitted(scheduler, "a", 5)[0].wait()
    assert scheduler.running <= 1
    assert scheduler.figures.steps - steps <= 5 + 2  # the others' steps, and the one that had begun
    scheduler.stop()


@jax_only
def test_more_than_may_wait_are_refused_and_those_that_do_are_told_of_the_end():
    scheduler = Scheduler(endless(), max_batch=2, queue=3)
    scheduler.start()
    heard = []
    with pytest.raises(FullError):
        for _ in range(6):
            heard.append(submitted(scheduler, "a", 10**6))
    assert len(heard) == 5
    for _, ticket in heard[:4]:
        ticket.leave()
    last, _ = heard[4]
    scheduler.stop(0.0)
    with pytest.raises(ClosedError):
        submitted(scheduler)
    last.wait()
    assert isinstance(last.events[-1], Failed)


@jax_only
def test_a_row_without_numbers_ends_with_an_error_and_touches_nobody(rwkv):
    """One state is made NaN where its prompt was read."""
    scheduler = Scheduler(rwkv, max_batch=4)
    scheduler.start()
    read = scheduler._writer.read

    def broken(batches, several, form):
        first = rwkv.tokenizer.encode("Z")[0]
        made = zip(several, read(batches, several, form), strict=True)
        return [
            batch._replace(state=jax.tree.map(lambda x: x * np.nan, batch.state)) if ids[0] == first else batch
            for ids, batch in made
        ]

    scheduler._writer.read = broken
    good = [submitted(scheduler, "once", 20, way, 2)[0] for way in WAYS[:3]]
    bad, _ = submitted(scheduler, "ZZ", 20)
    bad.wait()
    assert isinstance(bad.events[-1], Failed) and "not finite" in bad.events[-1].message
    for way, one in zip(WAYS[:3], good, strict=True):
        assert one.wait() == [rwkv.generate("once", max_new_tokens=20, sampling=way, seed=2, strip_prompt=True)]
    scheduler.stop()


@jax_only
def test_keys_take_turns(rwkv):
    """One who asks for much does not keep another waiting."""
    scheduler, ended = Scheduler(rwkv, max_batch=1), []
    scheduler.start()
    heard = []
    for key in "aaaab":
        one = dataclasses.replace(asked(rwkv, "a", 30), key=key)
        heard.append(Heard(told=lambda event, key=key: isinstance(event, Done) and ended.append(key)))
        scheduler.submit(one, heard[-1])
    for one in heard:
        one.wait()
    assert ended.index("b") <= 1
    scheduler.stop()


@jax_only
def test_many_answers_of_one_key_do_not_keep_another_waiting():
    """They have begun, but share rows that are free with it."""
    scheduler, ended = Scheduler(endless(), max_batch=2), []
    scheduler.start()
    many = Heard(6, told=lambda event: isinstance(event, Done) and ended.append("many"))
    one = Heard(told=lambda event: isinstance(event, Done) and ended.append("one"))
    scheduler.submit(dataclasses.replace(asked(scheduler, "a", 200, n=6), key="many"), many)
    scheduler.submit(dataclasses.replace(asked(scheduler, "a", 3), key="one"), one)
    one.wait()
    many.wait()
    assert ended.index("one") <= 2
    scheduler.stop()


@jax_only
def test_a_short_prompt_is_read_beside_a_long_one(rwkv):
    scheduler, order = Scheduler(rwkv, max_batch=4), []
    scheduler.start()
    heard = [Heard(told=lambda event, name=name: order.append(name)) for name in ("long", "short")]
    for prompt, one in zip(("x" * 20_000, "y" * 50), heard, strict=True):
        scheduler.submit(asked(rwkv, prompt, 1), one)
    for one in heard:
        one.wait()
    assert order[0] == "short"
    scheduler.stop()


@jax_only
def test_an_answer_that_takes_too_long_is_told_so():
    scheduler = Scheduler(endless(), max_batch=1)
    scheduler.start()
    heard = [Heard(), Heard()]
    for one in heard:
        scheduler.submit(dataclasses.replace(asked(scheduler, "a", 10**6), seconds=0.3), one)
    for one in heard:
        one.wait()
        assert one.events[-1].status == 504
    assert scheduler.running == scheduler.waiting == 0
    scheduler.stop()


class Digits:
    """A constraint: three digits, each one more than the one before where that is one."""

    def __init__(self, tokenizer, vocab_size):
        self._ids = [tokenizer.encode(str(digit))[0] for digit in range(10)]
        self._words, self._seen, self._count = -(-vocab_size // 32), None, 0

    def mask(self):
        bits = np.zeros(self._words * 32, bool)
        bits[self._ids if self._seen is None else self._ids[(self._seen + 1) % 10]] = True
        return np.packbits(bits, bitorder="little").view("<i4")

    def take(self, token):
        self._seen, self._count = self._ids.index(token), self._count + 1

    @property
    def ended(self):
        return self._count == 3


@jax_only
def test_a_constraint_holds_for_its_row_alone(rwkv, scheduler):
    free = rwkv.generate("once", max_new_tokens=20, sampling=WAYS[1], seed=2, strip_prompt=True)
    bound = dataclasses.replace(
        asked(rwkv, "a", 20, WAYS[1]), constraint=lambda: Digits(rwkv.tokenizer, rwkv.config.vocab_size)
    )
    both = [submitted(scheduler, "once", 20, WAYS[1], 2)[0], Heard()]
    scheduler.submit(bound, both[1])
    texts = [one.wait()[0] for one in both]
    assert texts[0] == free
    first = int(texts[1][0])
    assert texts[1] == "".join(str((first + i) % 10) for i in range(3))
    assert both[1].events[-1].reason == "stop"


@jax_only
@pytest.mark.parametrize("stops, limit", [((), 15), (("o",), 30)])
def test_the_place_behind_an_answer_is_that_of_its_text(rwkv, scheduler, stops, limit):
    """What it has read, and what waits, is the text that was shown; one goes on from there as from the whole text."""
    heard = Heard()
    scheduler.submit(dataclasses.replace(asked(rwkv, "once", limit, WAYS[1], 7, stops=stops), keep=True), heard)
    heard.wait()
    done = heard.events[-1]
    ids = [*rwkv.tokenizer.encode("once"), *done.ids]
    assert done.place.count == len(ids) and list(done.place.waiting) == ids[len(ids) - len(done.place.waiting) :]
    state = rwkv.prefill(np.array([ids[: len(ids) - len(done.place.waiting)]]))[1].numpy()
    np.testing.assert_allclose(done.place.state.wkv, state.wkv, atol=1e-5)
    np.testing.assert_allclose(done.place.state.shift, state.shift, atol=1e-5)
    more = dataclasses.replace(asked(rwkv, "x", 12), ids=done.place.waiting, start=done.place.state)
    scheduler.submit(more, again := Heard())
    alone = rwkv.generate(np.array(ids), max_new_tokens=12, sampling="greedy", strip_prompt=True)
    assert again.wait() == [rwkv.tokenizer.decode(alone)]


class Shelf:
    """A cache that has everything."""

    def __init__(self):
        self.kept = {}

    def keep(self, ids, state, origin):
        self.kept[origin, tuple(ids)] = state

    def find(self, ids, origin):
        counts = [n for n in range(len(ids), 0, -1) if (origin, tuple(ids[:n])) in self.kept]
        return (counts[0], self.kept[origin, tuple(ids[: counts[0]])]) if counts else None

    def close(self):
        pass


@jax_only
def test_what_a_cache_has_is_not_read_again(rwkv):
    """Neither the prompt, nor the answer, nor a long text up to where another one leaves it."""
    scheduler = Scheduler(rwkv, max_batch=2, cache=Shelf())
    scheduler.start()
    prompt = tuple(rwkv.tokenizer.encode("once more " * 250))

    def answered(ids):
        one = Heard()
        scheduler.submit(dataclasses.replace(asked(rwkv, limit=20), ids=ids), one)
        alone = rwkv.generate(np.array(ids), max_new_tokens=20, sampling="greedy", strip_prompt=True)
        assert one.wait() == [rwkv.tokenizer.decode(alone)]
        return one.events[-1]

    answer = answered(prompt).ids
    assert answered((*prompt, *answer, 9)).cached == len(prompt) + len(answer) - 1
    assert answered((*prompt[:-200], 7)).cached == 2048
    assert answered(prompt).cached == len(prompt) - 1
    scheduler.stop()


@jax_only
@pytest.mark.parametrize("name", ["read", "taken", "step", "state"])
def test_what_a_backend_raises_ends_what_it_concerns(rwkv, name):
    """Those who come later are served. A state that cannot be kept concerns nobody."""
    scheduler = Scheduler(rwkv, max_batch=2, cache=Shelf())
    scheduler.start()
    whole, raised = getattr(scheduler._writer, name), []

    def broken(*arguments):
        if not raised:
            raised.append(name)
            raise RuntimeError("No memory is left.")
        return whole(*arguments)

    setattr(scheduler._writer, name, broken)
    first, _ = submitted(scheduler, "once", 20)
    first.wait()
    assert raised and isinstance(first.events[-1], Done if name == "state" else Failed)
    alone = rwkv.generate("once more", max_new_tokens=20, sampling="greedy", strip_prompt=True)
    assert submitted(scheduler, "once more", 20)[0].wait() == [alone]
    scheduler.stop()


@jax_only
def test_stopping_finishes_what_was_asked_for(rwkv):
    scheduler = Scheduler(rwkv, max_batch=2)
    scheduler.start()
    heard = [submitted(scheduler, "a", 9, WAYS[1], seed)[0] for seed in range(5)]
    scheduler.stop(60)
    assert all(isinstance(one.events[-1], Done) for one in heard)
