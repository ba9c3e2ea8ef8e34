"""What is read from an HDF5 file lies in it: of the many ways to point elsewhere, none is followed."""

import os
import signal
from contextlib import contextmanager

import h5py
import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER, PileTokenizer, load_tokenizer
from bert4keras_rwkv.weights import WeightsError
from bert4keras_rwkv.weights.checkpoint import open_weights
from bert4keras_rwkv.weights.formats.hdf5 import data_sets, holds, open_hdf5
from tests.weights.fuzz.hdf5 import REFUSED

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe shows that a file was opened"),
]


@contextmanager
def alarm(seconds=60):
    """Whoever opens the pipe waits for a writer; this ends it."""
    signal.alarm(seconds)
    yield
    signal.alarm(0)


@pytest.fixture
def pipe(tmp_path):
    """A file that nobody can open without waiting for ever."""
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_plain_data_set_is_refused(tmp_path, pipe, name):
    make, message = REFUSED[name]
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        make(file.create_group("layers/backbone"), pipe)
    with alarm(), pytest.raises(WeightsError, match=message) as error, open_hdf5(tmp_path / "a.weights.h5") as file:
        data_sets(file)
    assert "a.weights.h5" in str(error.value) and len(str(error.value)) < 2000


@pytest.mark.parametrize("where", ["layers", "layers/backbone", "layers/time_mix", "layers/rwkv7__block"])
@pytest.mark.parametrize("kind", [h5py.ExternalLink, lambda pipe, path: h5py.SoftLink("/elsewhere")])
def test_a_file_is_told_by_what_lies_in_it(tmp_path, pipe, where, kind):
    """Which format it is, is asked before anything else: links are not followed for that either."""
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("elsewhere/time_mix/dense_xw")
        file.create_group("elsewhere/backbone")
        file[where] = kind(pipe, "/layers")
    with alarm(), pytest.raises(WeightsError, match="groups are not those"):
        open_weights(path)
    assert not holds(path, where)


def test_a_pipe_is_no_weight_file(pipe):
    with alarm(), pytest.raises(WeightsError, match="no regular file"):
        open_weights(pipe)


@pytest.mark.parametrize("read", [load_tokenizer, RWKV_TOKENIZER, PileTokenizer, RWKVConfig.from_json, RWKVState.load])
def test_nor_is_it_what_belongs_to_weights(pipe, read):
    with alarm(), pytest.raises(ValueError, match="no regular file"):
        read(pipe)
