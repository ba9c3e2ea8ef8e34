"""HDF5 files with each feature that can lead out of a file, or grow in it."""

import h5py
import numpy as np

SHAPE = (4, 4)
COMPOUND = np.dtype([("a", "<f4"), ("b", "<f4")])
ONES = np.ones(SHAPE, "f4")


def change(rng, file, pipe):
    """A feature in place of something in a file, or something gone."""
    names = []
    file.visit(names.append)
    name = rng.choice(names)
    feature = rng.choice([None, *REFUSED])
    made = file.create_group("made")
    if feature is not None:
        REFUSED[feature][0](made, pipe)
    above = file[name].parent
    del above[name.rpartition("/")[2]]
    if isinstance(made.get("x", getlink=True), h5py.HardLink) and rng.random() < 0.8:
        file.move("made/x", name)  # the thing itself
    elif len(made):
        file.move("made", name)
    if "made" in file:
        del file["made"]


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


def never_written(group, pipe):
    """Room that is claimed and not set aside."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(group.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((1 << 40,)), plist)


PIECE = "not stored as one piece"
REFUSED = {  # make(group, path of a pipe) puts it under 'x' -> what is said of it
    "external storage": (lambda group, pipe: group.create_dataset("x", SHAPE, "f4", external=[(pipe, 0, 64)]), PIECE),
    "a virtual data set": (virtual, PIECE),
    "an unlimited virtual data set": (unlimited, PIECE),
    "an external link": (link(lambda pipe: h5py.ExternalLink(pipe, "/y")), "link"),
    "a soft link": (link(lambda pipe: h5py.SoftLink("/layers")), "link"),
    "a soft link to nowhere": (link(lambda pipe: h5py.SoftLink("/nowhere")), "link"),
    "a link to itself": (link(lambda pipe: h5py.SoftLink("x")), "link"),
    "a hard link to a group above": (lambda group, pipe: group.__setitem__("x", group.parent), "link"),
    "two names of one data set": (twice, "link"),
    "chunks": (create(SHAPE, "f4", ONES, chunks=(1, 1)), PIECE),
    "compression": (create((1 << 20,), "f4", np.zeros(1 << 20), compression="gzip"), PIECE),
    "a filter that is not there": (raw_filter(32768), PIECE),
    "a filter that anybody may register": (raw_filter(300), PIECE),
    "room that is not there": (never_written, "claims 4398046511104 bytes and holds 0"),
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
