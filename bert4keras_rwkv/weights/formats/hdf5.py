"""What Keras' `.weights.h5` files have in common: data sets, read one at a time, with bfloat16 as two opaque bytes.

HDF5 can point to other files in several ways, unpack without end and load plugins. Keras uses none of it: only data
sets that lie in one piece inside the file are read, and the properties that say so are asked for first.
"""

from contextlib import contextmanager

import h5py
import numpy as np

from bert4keras_rwkv.weights.binary_file import regular
from bert4keras_rwkv.weights.tensors import DTYPES, Tensor, WeightsError

MAGIC = b"\x89HDF\r\n\x1a\n"
LAYERS = "layers/"
DEEPEST = 32  # groups in each other; those of a model are ten
PIECES = (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS)


def open_hdf5(path):
    """The HDF5 file, for reading. A damaged one is a `WeightsError`."""
    with damage_told(path):
        return h5py.File(regular(path), "r")


@contextmanager
def damage_told(path):
    """What h5py raises about damage, which can be nearly anything, as a `WeightsError`."""
    try:
        yield
    except (FileNotFoundError, WeightsError):
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"'{path}' cannot be read as HDF5: {error}. Was it downloaded whole?") from error


def holds(path, *names):
    """Whether an HDF5 file has all these groups, inside itself."""
    with open_hdf5(path) as file, damage_told(path):
        return all(_lies_in(file, name.split("/")) for name in names)


def _lies_in(group, names):
    """Whether a path leads somewhere without any link to elsewhere."""
    if not names:
        return True
    here = isinstance(group, h5py.Group) and group.id.links.exists(names[0].encode()) and _is_hard(group, names[0])
    return here and _lies_in(group[names[0]], names[1:])


def _is_hard(group, name):
    """Whether a name of a group is the thing itself: no soft, external or user-defined link."""
    return group.id.links.get_info(group._e(name)).type == h5py.h5l.TYPE_HARD


def data_sets(file):
    """Path -> `Tensor` for every data set of a file. Links to elsewhere, and to the same place twice, are refused."""
    found, seen = {}, set()

    def below(group, inside, levels):
        if not levels:
            raise WeightsError(f"'{file.filename}' has groups deeper than {DEEPEST} in each other.")
        for name in group:
            where = f"{inside}{name}"
            item = group[name] if _is_hard(group, name) else None
            address = None if item is None else h5py.h5o.get_info(item.id).addr
            if item is None or address in seen:
                raise WeightsError(
                    f"'{where}' in '{file.filename}' is a link to somewhere else. A weight file has none."
                )
            seen.add(address)
            if isinstance(item, h5py.Group):
                below(item, f"{where}/", levels - 1)
            else:
                found[where] = data_set(item, where)

    with damage_told(file.filename):
        seen.add(h5py.h5o.get_info(file.id).addr)
        below(file, "", DEEPEST)
        claimed, size = sum(tensor.nbytes for tensor in found.values()), file.id.get_filesize()
    if claimed > size:
        raise WeightsError(f"'{file.filename}' has {size} bytes, and its data sets claim {claimed} of them.")
    return found


def weights_only(found):
    """The data sets of layers' weights. A model that was compiled saves its optimizer too, and a dropout its seed."""
    return {name: item for name, item in found.items() if name.startswith(LAYERS) and "seed_generator" not in name}


def data_set(item, where):
    """One data set as a `Tensor`."""
    name = f"'{where}' in '{item.file.filename}'"
    if not isinstance(item, h5py.Dataset):
        raise WeightsError(f"{name} is neither a group nor a data set.")
    made = item.id.get_create_plist()
    if made.get_layout() not in PIECES or made.get_external_count() or made.get_nfilters():
        raise WeightsError(
            f"{name} is not stored as one piece inside the file: chunks, compression, external and virtual storage are "
            "refused. If the file is to be trusted, write it anew: h5repack -l CONTI -f NONE."
        )
    dtype = DTYPES["bfloat16"] if item.dtype == np.dtype("V2") else item.dtype
    if str(dtype) not in DTYPES or item.shape is None:
        raise WeightsError(f"{name} has the dtype {dtype}, which no weight has.")
    stored = item.id.get_storage_size()
    if item.nbytes > stored:
        raise WeightsError(f"{name} claims {item.nbytes} bytes and holds {stored}.")

    def part(*where):
        with damage_told(item.file.filename):
            return np.asarray(item[where], item.dtype).view(dtype)

    def rows(start, stop):
        return part(slice(start, stop))

    def columns(start, stop):
        return part(slice(None), slice(start, stop))

    return Tensor(item.shape, dtype, part, rows if item.shape else None, columns if len(item.shape) == 2 else None)
