"""Whatever is done to a file, it is read or refused with a `ValueError`, at once and without the memory it claims.

What fuzzing found is kept here: each of these files once raised something else, or asked for more than there is.
"""

import json
import struct
import subprocess
import sys
import zipfile
from functools import partial

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights import WeightsError, write_keras_h5, write_pth, write_safetensors
from bert4keras_rwkv.weights.adapters import read_adapter, save_lora
from bert4keras_rwkv.weights.checkpoint import open_checkpoint
from bert4keras_rwkv.weights.loading import in_order
from bert4keras_rwkv.weights.states import read_state, write_state
from tests.official import official_weights

pytestmark = pytest.mark.backend_free

SIZES = {"layers": 2, "heads": 1, "head_size": 4, "ids": 5, "ffn": 6}
WEIGHTS = official_weights("6", np.random.default_rng(7), **SIZES)
CONFIG = RWKVConfig.from_shapes({name: array.shape for name, array in WEIGHTS.items()})
MEMORY = 1 << 29  # bytes of address space that a reader of these small files may take beyond what is loaded already


def read_model(path):
    """Everything that loading does but for a backend."""
    with open_checkpoint(path) as checkpoint:
        for array in in_order(checkpoint.config.rules(), checkpoint.tensors).values():
            np.asarray(array)


def write_own(path):
    write_keras_h5(path, WEIGHTS, CONFIG)
    path.with_name("config.json").write_text(json.dumps(CONFIG.to_dict()))


def write_index(path):
    names = list(WEIGHTS)
    for number, part in enumerate((names[:9], names[9:])):
        write_safetensors(path.with_name(f"{number}.safetensors"), {name: WEIGHTS[name] for name in part})
    places = {name: f"{int(i >= 9)}.safetensors" for i, name in enumerate(names)}
    path.write_text(json.dumps({"weight_map": places}))


def write_pairs(path):
    pair = np.ones((2, 4), "float32"), np.ones((4, 2), "float32")
    save_lora(path, {"blocks.0.att.key": pair, "blocks.1.att.key": pair})


EMPTY = RWKVState.zeros(CONFIG)
FILES = {  # name -> how it is written, how it is read
    "a.pth": (partial(write_pth, mapping=WEIGHTS), read_model),
    "a.safetensors": (partial(write_safetensors, mapping=WEIGHTS), read_model),
    "a.weights.h5": (write_own, read_model),
    "a.safetensors.index.json": (write_index, read_model),
    "config.json": (lambda path: path.write_text(json.dumps(CONFIG.to_dict())), RWKVConfig.from_json),
    "own.state": (EMPTY.save, partial(read_state, config=CONFIG)),
    "state.pth": (partial(write_state, state=EMPTY), partial(read_state, config=CONFIG)),
    "state.st": (partial(write_state, state=EMPTY), partial(read_state, config=CONFIG)),
    "lora.pth": (write_pairs, read_adapter),
    "lora.st": (write_pairs, read_adapter),
}
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(
            (b"", b"\0", b"\xff", b"\x80", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"-1", b"[", b"{}", b'"\\ud800"')
        ),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_read_or_refused(name, tmp_path):
    """Bytes put in place of others, near the beginning too, where the sizes are; and files that end early."""
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    read(path)

    @settings(max_examples=60, deadline=1000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(changes=CHANGES, end=st.none() | st.floats(0, 1), header=st.booleans())
    def check(changes, end, header):
        data = bytearray(whole)
        span = min(len(data), 512) if header else len(data)
        for place, piece, removed in changes:
            at = int(place * span)
            data[at : at + removed] = piece
        path.write_bytes(data if end is None else data[: int(end * len(data))])
        try:
            read(path)
        except ValueError as error:
            assert str(error)

    check()


def header(path, said):
    """A safetensors file with this header and nothing behind it."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def h5_with(path, make):
    """An HDF5 file that `make(group)` fills, with a config beside it that claims two billion layers."""
    with h5py.File(path, "w") as file:
        make(file.create_group("layers/backbone"))
    keys = CONFIG.to_dict() | {"num_hidden_layers": 1000}
    path.with_name("config.json").write_text(json.dumps(keys))


def diamonds(group):
    """Twenty groups in each other, each linked twice: 2^20 ways down."""
    for _ in range(20):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def zipped_zeros(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))


def text(content):
    return lambda path: path.write_text(content, encoding="utf-8")


def without(version, name, instead=None):
    """Weights of a version without one of them, or with another array in its place."""
    weights = official_weights(version, np.random.default_rng(7), **SIZES)
    del weights[name]
    return weights if instead is None else weights | {name: instead}


CONFIG_KEYS = {"model": "rwkv7", "vocab_size": 5, "hidden_size": 64, "num_hidden_layers": 1, "head_size": 64}
FOUND = {
    "a layer far away.pth": (lambda path: write_pth(path, WEIGHTS | {"blocks.999998.x": np.ones(1)}), "most blocks"),
    "no decay.pth": (
        lambda path: write_pth(path, without("5.2", "blocks.0.att.time_decay")),
        r"'blocks\.0\.att\.time_decay' should have 1 dimensions to tell the model's sizes. Received: it is missing",
    ),
    "a scalar decay.pth": (
        lambda path: write_pth(path, without("5.2", "blocks.0.att.time_decay", np.ones(()))),
        r"Received: shape \(\)",
    ),
    "a flat factor.pth": (
        lambda path: write_pth(path, without("7", "blocks.1.att.v1", np.ones(4))),
        r"'blocks\.1\.att\.v1' should have 2 dimensions",
    ),
    "compressed zeros.pth": (zipped_zeros, "claims 104857600 bytes"),
    "offsets.safetensors": (
        lambda path: header(path, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}),
        "not one of this format",
    ),
    "size.safetensors": (lambda path: path.write_bytes(struct.pack("<Q", 1 << 62) + b"{"), "its header claims"),
    "depth.safetensors": (lambda path: header(path, b'{"a":' + b"[" * 100_000), "no JSON of a sensible depth"),
    "digits.safetensors": (lambda path: header(path, b'{"a":' + b"9" * 5000 + b"}"), "no JSON"),
    "layers.weights.h5": (
        partial(h5_with, make=lambda group: group.create_dataset("x", data=np.zeros(4))),
        "1000 layers",
    ),
    "hollow.weights.h5": (
        partial(
            h5_with, make=lambda group: group.create_dataset("x", (1 << 40,), chunks=(1 << 16,), compression="gzip")
        ),
        "not stored as one piece",
    ),
    "diamonds.weights.h5": (partial(h5_with, make=diamonds), "a link to somewhere else"),
    "cycle.weights.h5": (
        partial(h5_with, make=lambda group: group.__setitem__("x", group)),
        "a link to somewhere else",
    ),
    "depth.weights.h5": (partial(h5_with, make=lambda group: group.create_group("a/" * 3000)), "groups deeper than 32"),
    "a name.safetensors.index.json": (text('{"weight_map": {"a": "\\ud800"}}'), "no name of a file"),
    "a null.safetensors.index.json": (text('{"weight_map": {"a": "\\u0000"}}'), "no name of a file"),
    "depth.safetensors.index.json": (text('{"weight_map": ' + "[" * 100_000), "is no JSON"),
    "a dict.json": (
        text(json.dumps(CONFIG_KEYS | {"model": {}, "intermediate_size": 8})),
        r"The model \{\} is not known",
    ),
    "a float.json": (text(json.dumps(CONFIG_KEYS | {"hidden_size": 1e300})), "hidden_size"),
    "a large number.json": (text(json.dumps(CONFIG_KEYS | {"hidden_size": 10**400})), "Missing config keys"),
    "a large size.json": (text(json.dumps(CONFIG_KEYS | {"vocab_size": 1 << 31})), "`vocab_size` is a positive whole"),
    "digits.json": (text('{"vocab_size": ' + "9" * 5000 + "}"), "is no JSON"),
    "depth.json": (text("[" * 100_000), "is no JSON"),
    "a text.json": (text(json.dumps(CONFIG_KEYS | {"head_size_divisor": "8"})), "`head_size_divisor` is a positive"),
    "infinity.json": (text(json.dumps(CONFIG_KEYS | {"layer_norm_epsilon": float("inf")})), "is a positive number"),
    "a bonus.json": (
        text(json.dumps(CONFIG_KEYS | {"model": "rwkv5", "exponential_bonus": "no"})),
        "`exponential_bonus` is true or false",
    ),
    "2 MB.json": (text(" " * (2 << 20) + "{}"), "far more than"),
}


def is_config(name):
    return name.endswith(".json") and not name.endswith(".index.json")


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name, tmp_path):
    write, message = FOUND[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=message):
        RWKVConfig.from_json(path) if is_config(name) else read_model(path)


LIMITED = """
import resource, sys, time
from tests.weights.test_damage import MEMORY, CONFIG, read_model
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
for path in sys.argv[1:]:
    begun = time.perf_counter()
    try:
        read_model(path)
    except ValueError:
        print(time.perf_counter() - begun)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space of a process")
def test_nothing_is_allocated_that_a_header_claims(tmp_path):
    """In a process whose memory is bounded; a `MemoryError` would end it."""
    paths = []
    for name, (write, _) in FOUND.items():
        if not is_config(name):
            (tmp_path / name).mkdir()
            write(tmp_path / name / name)
            paths.append(tmp_path / name / name)
    done = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(paths)


def test_a_state_that_ends_early_says_so(tmp_path):
    EMPTY.save(tmp_path / "a.state")
    whole = (tmp_path / "a.state").read_bytes()
    (tmp_path / "a.state").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"a\.state is not one, or not whole.*Save the state again"):
        RWKVState.load(tmp_path / "a.state")


@pytest.mark.parametrize(
    "shapes", [((1, 2, 3), (1, 4, 1, 4)), ((1, 2, 1, 4, 4), (1, 5, 1, 4)), ((2, 2, 1, 4, 4), (1, 4, 1, 4))]
)
def test_a_state_whose_arrays_do_not_go_together(tmp_path, shapes):
    RWKVState(*map(np.zeros, shapes), "rwkv6").save(tmp_path / "a.state")
    with pytest.raises(ValueError, match=r"`shift` \(B, 2n, 1, D\)"):
        RWKVState.load(tmp_path / "a.state")


def test_a_disk_that_fills_leaves_the_old_state(tmp_path, monkeypatch):
    EMPTY.save(tmp_path / "a.state")
    before = (tmp_path / "a.state").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        RWKVState(EMPTY.wkv + 1, EMPTY.shift, "rwkv6").save(tmp_path / "a.state")
    assert (tmp_path / "a.state").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.state"]


def test_a_damaged_adapter_is_refused_before_a_model_is_touched(tmp_path):
    """All of it is read first: the last byte of its data is missing."""
    write_pairs(tmp_path / "a.st")
    (tmp_path / "a.st").write_bytes((tmp_path / "a.st").read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"a\.st' cannot be read"):
        read_adapter(tmp_path / "a.st")
