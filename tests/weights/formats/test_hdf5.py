"""What is read from an HDF5 file lies in it: of the many ways to point elsewhere, none is followed."""

import os
import signal
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from bert4keras_rwkv.weights import WeightsError
from bert4keras_rwkv.weights.files import open_weights
from bert4keras_rwkv.weights.formats.hdf5 import data_sets, holds, open_hdf5

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe shows that a file was opened"),
]
SHAPE = (4, 4)


@contextmanager
def alarm(seconds=5):
    """Whoever opens the pipe waits for a writer; this ends it."""
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def create(*arguments, **options):
    return lambda group, pipe: group.create_dataset("x", *arguments, **options)


def link(kind):
    return lambda group, pipe: group.__setitem__("x", kind(pipe))


def virtual(group, pipe, most=None, first=slice(None)):
    layout = h5py.VirtualLayout(SHAPE, "f4", maxshape=most)
    layout[first] = h5py.VirtualSource(pipe, "x", SHAPE, maxshape=most)[first]
    group.create_virtual_dataset("x", layout)


def unlimited(group, pipe):
    """Whose shape alone asks for the other file."""
    virtual(group, pipe, (None, 4), slice(0, h5py.h5s.UNLIMITED, 1))


def raw_filter(number):
    """A data set whose filter is a plugin."""

    def make(group, pipe):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(SHAPE)
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(group.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(SHAPE), plist)

    return make


def twice(group, pipe):
    group["x"] = group.create_dataset("y", SHAPE, "f4", np.ones(SHAPE))


def large_and_empty(group, pipe):
    """Room that was set aside, beyond the end of the file."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(group.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((1 << 40,)), plist)


COMPOUND = np.dtype([("a", "<f4"), ("b", "<f4")])
ONES = np.ones(SHAPE, "f4")
PIECE = "not stored as one piece"
REFUSED = {
    "external storage": (lambda group, pipe: group.create_dataset("x", SHAPE, "f4", external=[(pipe, 0, 64)]), PIECE),
    "a virtual data set": (virtual, PIECE),
    "an unlimited virtual data set": (unlimited, PIECE),
    "an external link": (lambda group, pipe: group.__setitem__("x", h5py.ExternalLink(pipe, "/y")), "link"),
    "a soft link": (link(lambda pipe: h5py.SoftLink("/layers")), "link"),
    "a soft link to nowhere": (link(lambda pipe: h5py.SoftLink("/nowhere")), "link"),
    "a link to itself": (link(lambda pipe: h5py.SoftLink("x")), "link"),
    "a hard link to a group above": (lambda group, pipe: group.__setitem__("x", group.parent), "link"),
    "two names of one data set": (twice, "link"),
    "chunks": (create(SHAPE, "f4", ONES, chunks=(1, 1)), PIECE),
    "compression": (create((1 << 20,), "f4", np.zeros(1 << 20), compression="gzip"), PIECE),
    "a filter that is not there": (raw_filter(32768), PIECE),
    "a filter that anybody may register": (raw_filter(300), PIECE),
    "room set aside": (large_and_empty, "claims 4398046511104 bytes and holds 0"),
    "nothing": (create(data=h5py.Empty("f4")), "dtype"),
    "a compound type": (create(SHAPE, COMPOUND, np.ones(SHAPE, COMPOUND)), "dtype"),
    "texts": (create((2,), h5py.string_dtype(), ["a", "b"]), "dtype"),
    "arrays of any length": (create((2,), h5py.vlen_dtype("f4")), "dtype"),
    "opaque bytes": (create((2,), "V16"), "dtype"),
    "references": (create((2,), h5py.ref_dtype), "dtype"),
    "regions": (create((2,), h5py.regionref_dtype), "dtype"),
    "big-endian numbers": (create(SHAPE, ">f4", ONES), "dtype"),
    "arrays as numbers": (create((2,), np.dtype(("<f4", (3,)))), "dtype"),
    "a type": (lambda group, pipe: group.__setitem__("x", np.dtype("f4")), "neither a group nor a data set"),
    "depth": (lambda group, pipe: group.create_group("x/" * 100), "deeper than"),
}


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
