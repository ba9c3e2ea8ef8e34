"""Matrices that a file holds in fewer bytes, as lazy tensors of their numbers, and how a `config.json` says which."""

import logging
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from bert4keras_rwkv.packing import NAMES, Scheme, unpacked
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import TRANSPOSE, filled
from bert4keras_rwkv.weights.copying import read_whole
from bert4keras_rwkv.weights.tensors import Packed, Tensor, Tensors, WeightsError, dtype_named

logger = logging.getLogger("bert4keras_rwkv")

KEY = "quantization"  # of a config.json
OFFERED = (
    "packed"  # in the metadata of `Tensors`: official name -> `Packed`, for those who want a file's blocks as they are
)
KEYS = {*(field.name for field in fields(Scheme)), "inputs", "matrices"}


@dataclass(frozen=True)
class Described:
    """How one matrix is packed, and of how many inputs; the rows of a packed one may be longer."""

    scheme: Scheme
    inputs: int


class Difference:
    """How far the packed numbers of matrices of one type are from those of the file, added up as they are read.

    kind: GGML's type. exact: they are not, whatever is read.
    """

    def __init__(self, kind, scheme, exact):
        self.kind, self.scheme, self.exact, self.matrices = kind, scheme, exact, 0
        self._squares = self._all_squares = self._largest = self._largest_of_all = 0.0

    def add(self, numbers, packed):
        """Numbers of the file, and what stands for them; float32 arrays of one shape."""
        apart = numbers - packed
        self._join(np.vdot(apart, apart), np.vdot(numbers, numbers), np.abs(apart).max(), np.abs(numbers).max())

    def join(self, other):
        """Add up with another one of the same kind."""
        self.matrices += other.matrices
        self._join(other._squares, other._all_squares, other._largest, other._largest_of_all)

    def _join(self, squares, all_squares, largest, largest_of_all):
        self._squares, self._all_squares = self._squares + float(squares), self._all_squares + float(all_squares)
        self._largest = max(self._largest, float(largest))
        self._largest_of_all = max(self._largest_of_all, float(largest_of_all))

    @property
    def largest(self):
        """The largest difference, as a share of the largest number."""
        return self._largest / self._largest_of_all if self._largest else 0.0

    @property
    def rms(self):
        """The root mean square of the differences, as a share of that of the numbers."""
        return (self._squares / self._all_squares) ** 0.5 if self._squares else 0.0

    def __str__(self):
        near = (
            "exact"
            if self.exact
            else f"largest difference {self.largest:.2g} of the largest number, RMS {self.rms:.2g}"
        )
        return f"{self.matrices} of {self.kind} as {title(self.scheme)}: {near}"


def as_packed(tensors):
    """`Tensors` of which those that a file has in blocks are packed."""
    offered = tensors.metadata.get(OFFERED, {})
    entries = {
        name: replace(entry, packed=offered[name]) if name in offered else entry
        for name, entry in tensors.entries().items()
    }
    return Tensors(entries, tensors.metadata, tensors.close)


def say_differences(tensors):
    """Log, once, how near the packed numbers that were read are to those of the file."""
    found = {}
    for entry in tensors.entries().values():
        one = None if entry.packed is None else entry.packed.difference
        if one is not None and one.matrices:
            found.setdefault(one.kind, Difference(one.kind, one.scheme, one.exact)).join(one)
    if found:
        level = logging.INFO if all(one.exact for one in found.values()) else logging.WARNING
        logger.log(level, "The matrices are kept in the bytes of the file: %s.", "; ".join(map(str, found.values())))


def title(scheme):
    """A `Scheme` for people: 'int4 in groups of 32 with least values'."""
    if scheme.bits == 16:
        return scheme.name
    groups = "whole rows" if scheme.group is None else f"groups of {scheme.group}"
    return f"{scheme.name} in {groups}{' with least values' if scheme.bits == 4 and scheme.least else ''}"


def becomes(packed):
    """What the blocks of a file become, for people: a `title`, and whether that is exact."""
    return f"{title(packed.scheme)}, {'exact' if packed.difference.exact else 'rounded'}"


def packed_tensor(name, outputs, described, parts):
    """A matrix (outputs, inputs) of packed parts, name -> `Tensor`, as the `Tensor` of its numbers, with its `Packed`.

    Parts that its scheme does not have, or of other shapes or dtypes, are a `WeightsError` that names the matrix.
    """
    scheme, inputs = described.scheme, described.inputs
    wanted = scheme.tensors(outputs, inputs)
    found = {part: (tuple(tensor.shape), str(tensor.dtype)) for part, tensor in parts.items()}
    if found != wanted:
        raise WeightsError(
            f"'{name}' with {inputs} inputs, {title(scheme)}, has the tensors {wanted}. The file holds: {found}."
        )
    dtype = dtype_named("bfloat16" if scheme.bits == 16 else "float32")

    def read():
        return {part: read_whole(tensor) for part, tensor in parts.items()}

    def rows(start, stop):
        return unpacked({part: tensor.rows(start, stop) for part, tensor in parts.items()}, scheme, inputs)

    return Tensor((outputs, inputs), dtype, lambda: rows(0, outputs), rows, packed=Packed(scheme, read))


def schemes_of(rules, tensors):
    """Path of a projection, 'blocks/0/time_mix/key' -> `Described`, for the tensors that are packed."""
    entries = tensors.entries()
    packed = {rule.path: entries[rule.names[0]] for rule in filled(rules) if rule.names[0] in entries}
    return {
        path.removesuffix("/kernel"): Described(entry.packed.scheme, entry.shape[1])
        for path, entry in packed.items()
        if entry.packed is not None
    }


def is_low_rank(path):
    """Whether the variable at an attribute path is a low-rank matrix, 'blocks/3/time_mix/decay_low_rank/a/kernel'."""
    *owners, name = path.split("/")
    return name == "kernel" and len(owners) == 5


def halves_of(rules, tensors):
    """Official name -> path of what is held in bfloat16 beside packed matrices, for the file has it so: the embedding,
    and low-rank matrices if all of them are. Several in one tensor are not.
    """
    rules = filled(rules)
    halves = {rule.names[0]: rule.path for rule in rules if str(tensors.dtypes[rule.names[0]]) == "bfloat16"}
    low_ranks = [rule.names[0] for rule in rules if is_low_rank(rule.path) and len(tensors.shapes[rule.names[0]]) == 2]
    found = low_ranks if all(name in halves for name in low_ranks) else []
    return {name: halves[name] for name in ("emb.weight", *found) if name in halves}


def stored_dtype(tensors):
    """The dtype of a model as it is stored: the head's, or where that is packed that of the norm before it."""
    packed = tensors.entry("head.weight").packed is not None
    return tensors.dtypes["ln_out.weight" if packed else "head.weight"]


def as_json(described):
    """What `from_json` reads: the matrices that are packed alike, together."""
    alike = {}
    for path, one in described.items():
        alike.setdefault(one, []).append(path)
    return [{**asdict(one.scheme), "inputs": one.inputs, "matrices": paths} for one, paths in alike.items()]


def from_json(keys, rules):
    """Path of a projection -> `Described`. keys: what a `config.json` says, which nobody vouches for.

    Anything that is not so, or no matrix of the model, is a `WeightsError`.
    """
    matrices = {rule.path.removesuffix("/kernel") for rule in filled(rules) if rule.transform is TRANSPOSE}
    found = {}
    for group in keys if isinstance(keys, list) else [keys]:
        if not isinstance(group, dict) or set(group) != KEYS or not isinstance(group["matrices"], list):
            raise WeightsError(f"'{KEY}' is a list of objects with {', '.join(sorted(KEYS))}. It has: {shown(group)}.")
        described = _described(group)
        for path in group["matrices"]:
            if not isinstance(path, str) or path not in matrices or path in found:
                raise WeightsError(f"'{KEY}' names {shown(path)}, which is no matrix of the model, or named twice.")
            found[path] = described
    return found


def _described(group):
    """The `Described` of one object of a `config.json`."""
    numbers = [group["bits"], group["inputs"], *([] if group["group"] is None else [group["group"]])]
    if any(type(number) is not int for number in numbers) or type(group["least"]) is not bool:
        raise WeightsError(f"'{KEY}' has whole numbers, and true or false for 'least'. It has: {shown(group)}.")
    if not 0 < group["inputs"] < 1 << 31:
        raise WeightsError(f"'{KEY}' has matrices of {shown(group['inputs'])} inputs.")
    try:
        return Described(Scheme(group["bits"], group["group"], group["least"]), group["inputs"])
    except ValueError as error:
        raise WeightsError(f"'{KEY}': {error} This version of the package knows no other.") from error


def parts_of(scheme):
    """The names of the tensors of a packed matrix."""
    return NAMES[scheme.bits] if scheme.least else tuple(name for name in NAMES[scheme.bits] if name != "least")
