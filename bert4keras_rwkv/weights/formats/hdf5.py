"""What Keras' `.weights.h5` files have in common: data sets, read one at a time, with bfloat16 as two opaque bytes."""

from contextlib import contextmanager

import h5py
import numpy as np

from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.tensors import DTYPES, Tensor

MAGIC = b"\x89HDF\r\n\x1a\n"
LAYERS = "layers/"


def open_hdf5(path):
    """The HDF5 file, for reading. A damaged one is a `WeightsError`."""
    with whole(path):
        return h5py.File(path, "r")


@contextmanager
def whole(path):
    """What h5py raises about damage, which can be nearly anything, as a `WeightsError`."""
    try:
        yield
    except (FileNotFoundError, WeightsError):
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"'{path}' cannot be read as HDF5: {error}. Was it downloaded whole?") from error


def holds(path, *names):
    """Whether an HDF5 file has all these groups."""
    with open_hdf5(path) as file, whole(path):
        return all(name in file for name in names)


def data_sets(file):
    """Path -> `Tensor` for every data set of a file. Links to elsewhere, and to the same place twice, are refused."""
    found, seen = {}, set()

    def below(group, inside):
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{inside}{name}"
            item = group[name] if isinstance(link, h5py.HardLink) else None
            address = None if item is None else h5py.h5o.get_info(item.id).addr
            if item is None or address in seen:
                raise WeightsError(
                    f"'{where}' in '{file.filename}' is a link to somewhere else. A weight file has none."
                )
            seen.add(address)
            if isinstance(item, h5py.Group):
                below(item, f"{where}/")
            else:
                found[where] = data_set(item, where)

    with whole(file.filename):
        below(file, "")
    return found


def weights_only(found):
    """The data sets of layers' weights. A model that was compiled saves its optimizer too, and a dropout its seed."""
    return {name: item for name, item in found.items() if name.startswith(LAYERS) and "seed_generator" not in name}


def data_set(item, where):
    """One data set as a `Tensor`."""
    if not isinstance(item, h5py.Dataset):
        raise WeightsError(f"'{where}' in '{item.file.filename}' is neither a group nor a data set.")
    dtype = DTYPES["bfloat16"] if item.dtype == np.dtype("V2") else item.dtype
    if str(dtype) not in DTYPES or item.shape is None:
        raise WeightsError(f"'{where}' in '{item.file.filename}' has the dtype {dtype}, which no weight has.")
    stored = item.id.get_storage_size()
    if item.nbytes > max(64 * stored, 1 << 16):  # compressed zeros are no weights either
        raise WeightsError(f"'{where}' in '{item.file.filename}' claims {item.nbytes} bytes and holds {stored}.")

    def part(*where):
        with whole(item.file.filename):
            return np.asarray(item[where], item.dtype).view(dtype)

    def rows(start, stop):
        return part(slice(start, stop))

    def columns(start, stop):
        return part(slice(None), slice(start, stop))

    return Tensor(item.shape, dtype, part, rows if item.shape else None, columns if len(item.shape) == 2 else None)
