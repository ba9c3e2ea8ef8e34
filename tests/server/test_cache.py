"""What is found is what was kept, bit for bit: after other texts, other processes, kill -9, damage and full disks."""

import logging
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.server import disk, state_folder
from bert4keras_rwkv.server.cache import StateCache
from bert4keras_rwkv.server.prefixes import BLOCK
from bert4keras_rwkv.state import RWKVState

pytestmark = pytest.mark.backend_free

CONFIG = RWKVConfig(
    model="rwkv6",
    vocab_size=65536,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    attention_head_size=8,
    intermediate_size=32,
    decomposer_size=4,
    time_decay_size=8,
)
ENTRY = 4 * (2 * 2 * 8 * 8 + 4 * 16)  # bytes of a state


def state(ids, dtype="float32", origin=""):
    """A state that no other ids have."""
    rng = np.random.default_rng([len(ids), *ids, *origin.encode()])
    wkv, shift = (rng.normal(size=(1, *shape)).astype("float32") for shape in RWKVState.shapes(CONFIG))
    return RWKVState(wkv, shift.astype(dtype), CONFIG.model)


def text(length, seed=0):
    return tuple(np.random.default_rng([seed, length]).integers(0, 65536, length).tolist())


def assert_same(found, ids, **options):
    count, got = found
    want = state(ids, **options)
    assert count == len(ids)
    for name in ("wkv", "shift"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        assert getattr(got, name).dtype == getattr(want, name).dtype


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def blobs(folder):
    return [path for path in files(folder) if path.suffix == ".safetensors"]


def eventually(condition):
    """Wait until the cache's thread has done it."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def opened(tmp_path):
    """A function that opens a cache in one folder; all are closed behind the test."""
    caches = []

    def open_one(model="model", folder=tmp_path / "states", **options):
        caches.append(StateCache(model, CONFIG, folder=folder, **options))
        return caches[-1]

    yield open_one
    for cache in caches:
        cache.close()


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_longest_beginning_is_found(opened, on_disk):
    """Whatever was kept, of any length, and whatever is asked for: as a search through all of it says."""
    cache = opened() if on_disk else opened(folder=None)
    rng, trunk = random.Random(0), text(5 * BLOCK)
    kept = []
    for length in (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 7, 2 * BLOCK + 8, 4 * BLOCK + 3):
        for branch in range(3):
            cut = rng.randrange(length + 1)
            kept.append(trunk[:cut] + text(length - cut, branch))
    for ids in kept:
        cache.keep(ids, state(ids))
    if on_disk:
        cache.close()
        cache = opened(memory=0)
    left = [ids[: rng.randrange(len(ids) + 1)] + text(rng.randrange(3 * BLOCK), 9) for ids in kept]
    asked = [*left, *kept, (), trunk]
    for ids in asked:
        want = max((one for one in kept if ids[: len(one)] == one), key=len, default=None)
        found = cache.find(ids)
        if want is None:
            assert found is None
        else:
            assert_same(found, want)


def test_origins_models_and_dtypes_are_kept_apart(opened):
    ids = text(40)
    cache = opened()
    cache.keep(ids, state(ids))
    cache.keep(ids, state(ids, origin="poet"), "poet")
    for other in ("", "poet"):
        assert_same(cache.find(ids, other), ids, origin=other)
    assert cache.find(ids, "other") is None
    cache.close()
    assert opened("another model").find(ids) is None
    assert opened(dtype="bfloat16").find(ids) is None
    assert_same(opened().find(ids, "poet"), ids, origin="poet")


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shift", ["float32", "bfloat16"])
def test_states_come_back_in_their_dtypes(opened, on_disk, dtype, shift):
    ids, cache = text(3), opened(dtype=dtype)
    want = state(ids, shift)
    cache.keep(ids, want)
    if on_disk:
        cache.close()
        cache = opened(dtype=dtype)
    _, got = cache.find(ids)
    assert (str(got.wkv.dtype), str(got.shift.dtype)) == ("float32", shift)
    rounded = want.wkv.astype(ml_dtypes.bfloat16).astype("float32") if dtype == "bfloat16" else want.wkv
    np.testing.assert_array_equal(got.wkv, rounded)
    assert got.model == CONFIG.model


def test_memory_holds_what_was_used_last(opened):
    cache = opened(folder=None, memory=4 * (ENTRY + 1200))
    texts = [text(20, seed) for seed in range(5)]
    for ids in texts[:4]:
        cache.keep(ids, state(ids))
    cache.keep(texts[1], state(texts[1]))
    assert cache.figures().memory_entries == 4
    cache.find(texts[0])
    cache.keep(texts[4], state(texts[4]))
    assert [cache.find(ids) is not None for ids in texts] == [True, True, False, True, True]
    figures = cache.figures()
    assert (figures.hits, figures.misses, figures.tokens) == (5, 1, 100)
    assert figures.memory_bytes <= 4 * (ENTRY + 1200)


def test_memory_holds_rows_without_their_batch(opened):
    cache, batch = opened(folder=None), RWKVState.zeros(CONFIG, 64)
    cache.keep((1, 2), RWKVState(batch.wkv[:1], batch.shift[:1], CONFIG.model))
    _, got = cache.find((1, 2))
    assert not np.shares_memory(got.wkv, batch.wkv) and not np.shares_memory(got.shift, batch.shift)


def test_what_memory_gave_up_is_found_on_disk(opened):
    """And comes back to memory: the second time it is read from there."""
    cache = opened(memory=2 * (ENTRY + 1200))
    texts = [text(20, seed) for seed in range(5)]
    for ids in texts:
        cache.keep(ids, state(ids))
    eventually(lambda: cache.figures().disk_entries == 5)
    for ids in texts:
        assert_same(cache.find(ids), ids)
        assert_same(cache.find(ids), ids)
    assert cache.figures().disk_hits == 5 and cache.figures().hits == 10


def test_the_disk_holds_what_was_used_last_whatever_the_clock_says(opened, monkeypatch, tmp_path):
    """Entries of another model make room too."""
    texts = [text(20, seed) for seed in range(6)]
    other = opened("another model")
    other.keep(texts[5], state(texts[5]))
    other.close()
    size = opened().figures().disk_bytes
    cache = opened(disk=4 * size + size // 2)
    hours = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(hours))
    for number, ids in enumerate(texts[:4]):
        cache.keep(ids, state(ids))
        eventually(lambda n=number: cache.figures().disk_entries == min(n + 2, 4))
    cache.find(texts[0])
    cache.keep(texts[4], state(texts[4]))
    cache.close()
    assert len(blobs(tmp_path)) == 4
    cache = opened()
    assert [cache.find(ids) is not None for ids in texts[:5]] == [True, False, True, True, True]
    assert opened("another model").find(texts[5]) is None


def test_what_is_larger_than_all_may_be_is_kept_nowhere(opened, tmp_path):
    cache = opened(memory=ENTRY, disk=ENTRY)
    cache.keep((1,), state((1,)))
    cache.close()
    assert cache.find((1,)) is None and blobs(tmp_path) == []


def test_files_are_their_owners_alone(opened, tmp_path):
    """Even where the user lets everybody read what he writes. And they tell nothing by their names."""
    before = os.umask(0)
    try:
        cache = opened()
        for seed in range(3):
            cache.keep(text(50, seed), state(text(50, seed)), "../../origin")
        cache.close()
        cache = opened()
    finally:
        os.umask(before)
    assert len(blobs(tmp_path)) == 3
    for path in (tmp_path / "states").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "states").stat().st_mode) == 0o700
    assert all(set(path.stem) <= set("0123456789abcdef-") for path in blobs(tmp_path))


def written(path, change):
    """Let a file hold something else, its index knowing nothing of that."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def retold(path, wrong):
    """A whole file of a state that is wrong, which the index vouches for."""
    wrong.save(path)
    with sqlite3.connect(path.parent.parent / state_folder.INDEX) as index:
        checksum = state_folder.zlib.crc32(path.read_bytes())
        index.execute("UPDATE states SET checksum = ? WHERE file = ?", (checksum, path.name))
    index.close()


def infinite():
    wrong = state((7,))
    wrong.wkv[0, 1, 0, 3, 3] = np.inf
    return wrong


DAMAGE = {
    "one bit": lambda path: written(path, lambda data: data.__setitem__(-9, data[-9] ^ 1)),
    "cut short": lambda path: written(path, lambda data: data.__delitem__(slice(-100, None))),
    "empty": lambda path: path.write_bytes(b""),
    "no state": lambda path: path.write_bytes(b"\xff" * 1000),
    "other shapes": lambda path: retold(path, RWKVState(np.zeros((1, 2, 3, 16)), np.zeros((1, 4, 1, 16)))),
    "several rows": lambda path: retold(path, RWKVState.zeros(CONFIG, 2)),
    "not finite": lambda path: retold(path, infinite()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_not_found_and_goes(opened, tmp_path, caplog, damage):
    """The longest that is whole is found instead. It is said once, and the same text can be kept again."""
    long, cache = text(3 * BLOCK + 1), opened()
    cache.keep(long[:40], state(long[:40]))
    cache.close()
    (good,) = blobs(tmp_path)
    cache = opened()
    for ids in (long, long[:-1]):
        cache.keep(ids, state(ids))
    cache.close()
    for path in set(blobs(tmp_path)) - {good}:
        damage(path)
    cache = opened()
    with caplog.at_level(logging.WARNING):
        assert_same(cache.find(long), long[:40])
        assert_same(cache.find(long), long[:40])
    assert len(caplog.records) == 1 and "amaged" in caplog.text
    assert blobs(tmp_path) == [good]
    cache.keep(long, state(long))
    cache.close()
    assert_same(opened().find(long), long)


@pytest.mark.parametrize("ruin", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000, "torn"])
def test_an_index_that_is_damaged_is_made_anew(opened, tmp_path, caplog, ruin):
    ids, cache = text(40), opened()
    for seed in range(30):
        cache.keep(text(40, seed), state(text(40, seed)))
    cache.close()
    index = tmp_path / "states" / state_folder.INDEX
    if ruin == "torn":
        written(index, lambda data: data.__setitem__(slice(4096, 2 * 4096), os.urandom(4096)))
    else:
        index.write_bytes(ruin)
    with caplog.at_level(logging.WARNING):
        cache = opened()
    assert len(caplog.records) == 1 and "is damaged" in caplog.text
    assert blobs(tmp_path) == []
    cache.keep(ids, state(ids))
    cache.close()
    assert_same(opened().find(ids), ids)


def test_a_file_that_another_process_removed_is_a_miss(opened, tmp_path, caplog):
    ids, cache = text(40), opened(memory=0)
    cache.keep(ids, state(ids))
    eventually(lambda: cache.figures().disk_entries == 1)
    blobs(tmp_path)[0].unlink()
    with caplog.at_level(logging.WARNING):
        assert cache.find(ids) is None
    assert not caplog.records
    cache.keep(ids, state(ids))
    eventually(lambda: cache.find(ids))
    assert_same(cache.find(ids), ids)


def test_a_full_disk_ends_its_use_and_nothing_else(opened, tmp_path, caplog):
    """Full is a limit on the size of files here, which the system enforces as it does a full disk."""
    ids, cache = text(40), opened()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with caplog.at_level(logging.WARNING):
            for seed in range(3):
                cache.keep(text(40, seed), state(text(40, seed)))
                eventually(lambda: caplog.records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caplog.records) == 1 and "in memory only" in caplog.text
    assert blobs(tmp_path) == []
    for seed in range(3):
        assert_same(cache.find(text(40, seed)), text(40, seed))
    cache.keep(ids, state(ids))
    cache.close()
    assert_same(cache.find(ids), ids)


@pytest.mark.parametrize("place", ["a file", "below a file", "of others"])
def test_a_folder_that_cannot_be_used_is_done_without(opened, tmp_path, caplog, place):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "of others").mkdir()
    (tmp_path / "of others").chmod(0o777)
    folder = {"a file": "file", "below a file": "file/states", "of others": "of others"}[place]
    with caplog.at_level(logging.WARNING):
        cache = opened(folder=tmp_path / folder)
        cache.keep((1,), state((1,)))
        assert_same(cache.find((1, 2)), (1,))
    assert len(caplog.records) == 1 and "in memory only" in caplog.text


def test_an_index_that_is_busy_from_the_start_is_done_without(opened, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(state_folder, "PATIENCE", 0.05)
    opened().close()
    other = sqlite3.connect(tmp_path / "states" / state_folder.INDEX, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING):
        cache = opened()
    other.close()
    cache.keep((1, 2), state((1, 2)))
    assert_same(cache.find((1, 2)), (1, 2))
    assert len(caplog.records) == 1 and "locked" in caplog.text


def test_an_index_that_is_busy_loses_an_entry_and_no_more(opened, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(state_folder, "PATIENCE", 0.05)
    cache = opened(memory=0)
    other = sqlite3.connect(tmp_path / "states" / state_folder.INDEX, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    cache.keep((1, 2), state((1, 2)))
    time.sleep(0.3)
    other.execute("ROLLBACK")
    other.close()
    cache.keep((3, 4), state((3, 4)))
    eventually(lambda: cache.figures().disk_entries == 1)
    assert cache.find((1, 2)) is None
    assert_same(cache.find((3, 4)), (3, 4))
    assert not caplog.records


def test_a_disk_that_cannot_keep_up_loses_some_and_nobody_waits(opened, monkeypatch):
    monkeypatch.setattr(disk, "WAITING", 3 * (ENTRY + 200))
    let = threading.Event()
    keep = state_folder.StateFolder.keep
    monkeypatch.setattr(state_folder.StateFolder, "keep", lambda *job: (let.wait(20), keep(*job)))
    cache, texts = opened(), [text(20, seed) for seed in range(9)]
    for ids in texts:
        cache.keep(ids, state(ids))
    let.set()
    cache.close()
    found = [opened(memory=0).find(ids) for ids in texts]
    assert 3 <= sum(one is not None for one in found) <= 4
    assert all(cache.find(ids) for ids in texts)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (RWKVState.zeros(CONFIG, 2), "one row"),
        (RWKVState(np.zeros((1, 3, 2, 8, 8)), np.zeros((1, 6, 1, 16)), "rwkv6"), "wants wkv"),
    ],
)
def test_other_states_are_refused(opened, wrong, says):
    with pytest.raises(ValueError, match=says):
        opened(folder=None).keep((1,), wrong)


def test_a_state_that_is_not_finite_is_not_kept(opened):
    cache = opened()
    cache.keep((7,), infinite())
    assert cache.find((7,)) is None


def test_threads_may_all_use_it(opened):
    cache, failed = opened(memory=5 * (ENTRY + 1200)), []

    def use(seed):
        rng = random.Random(seed)
        for _ in range(60):
            ids = text(20 + rng.randrange(3), rng.randrange(8))
            found = cache.find(ids)
            if found is None:
                cache.keep(ids, state(ids))
            else:
                try:
                    assert_same(found, ids)
                except AssertionError as error:
                    failed.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert cache.figures().hits + cache.figures().misses == 240


KEEPER = """
import random, sys, time
sys.path[:0] = [sys.argv[1]]
from tests.server.test_cache import CONFIG, StateCache, state, text, ENTRY
rng = random.Random()
while True:
    cache = StateCache("model", CONFIG, memory=0, folder=sys.argv[2], disk=30 * (ENTRY + 700))
    print("open", flush=True)
    for _ in range(5):
        ids = text(rng.choice((3, 31, 32, 70)), rng.randrange(60))
        cache.find(ids)
        cache.keep(ids, state(ids))
        time.sleep(rng.uniform(0, 0.02))
    cache.close()
"""


def test_a_kill_at_any_moment_leaves_what_is_whole(opened, tmp_path, caplog):
    """Two processes share the folder, open and close it, have nothing to warn of, and are killed, again and again."""
    root, folder = Path(__file__).resolve().parents[2], tmp_path / "states"
    rng, seen = random.Random(1), 0
    for _ in range(4):
        command = [sys.executable, "-c", KEEPER, str(root), str(folder)]
        keepers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        for keeper in keepers:
            assert keeper.stdout.readline() == b"open\n"
        for keeper in keepers:
            time.sleep(rng.uniform(0.05, 0.5))
            keeper.send_signal(signal.SIGKILL)
            assert keeper.communicate()[1] == b""
        with caplog.at_level(logging.WARNING):
            cache = opened(memory=0)
            for seed in range(60):
                for end in (3, 31, 32, 70):
                    found = cache.find(text(end, seed))
                    if found is not None:
                        seen += 1
                        assert_same(found, text(end, seed))
            entries, nbytes = cache.figures().disk_entries, cache.figures().disk_bytes
        cache.close()
        assert not caplog.records
        assert len(blobs(tmp_path)) == entries and nbytes <= 30 * (ENTRY + 700)
        assert {path.name for path in files(folder)} - {path.name for path in blobs(folder)} <= {
            state_folder.LOCK,
            *(state_folder.INDEX + end for end in ("", "-wal", "-shm")),
        }
    assert seen > 20
