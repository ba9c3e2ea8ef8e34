"""What Keras' `.weights.h5` files have in common: data sets, read one at a time, with bfloat16 as two opaque bytes."""

import h5py
import numpy as np

from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.tensors import DTYPES, Tensor

MAGIC = b"\x89HDF\r\n\x1a\n"


def open_hdf5(path):
    """The HDF5 file, for reading. A damaged one is a `WeightsError`."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise WeightsError(f"'{path}' cannot be read as HDF5: {error}. Was it downloaded whole?") from error


def data_sets(group, inside=""):
    """Path -> `Tensor` for every data set below a group. Links that lead out of the file are refused."""
    found = {}
    for name in group:
        link = group.get(name, getlink=True)
        where = f"{inside}/{name}" if inside else name
        if not isinstance(link, h5py.HardLink):
            raise WeightsError(
                f"'{where}' in '{group.file.filename}' is a link to somewhere else. A weight file has none."
            )
        item = group[name]
        if isinstance(item, h5py.Group):
            found.update(data_sets(item, where))
        else:
            found[where] = data_set(item, where)
    return found


def data_set(item, where):
    """One data set as a `Tensor`."""
    dtype = DTYPES["bfloat16"] if item.dtype == np.dtype("V2") else item.dtype
    if str(dtype) not in DTYPES or item.shape is None:
        raise WeightsError(f"'{where}' in '{item.file.filename}' has the dtype {dtype}, which no weight has.")
    stored = item.id.get_storage_size()
    if item.nbytes > max(64 * stored, 1 << 16):  # compressed zeros are no weights either
        raise WeightsError(f"'{where}' in '{item.file.filename}' claims {item.nbytes} bytes and holds {stored}.")

    def rows(start, stop):
        return item[start:stop].view(dtype)

    def read():
        return rows(0, item.shape[0]) if item.shape else np.asarray(item[()], item.dtype).view(dtype)

    def columns(start, stop):
        return item[:, start:stop].view(dtype)

    return Tensor(item.shape, dtype, read, rows if item.shape else None, columns if len(item.shape) == 2 else None)
