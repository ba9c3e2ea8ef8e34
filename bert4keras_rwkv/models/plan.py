"""What a strategy means for a model: where each block goes, in how many bytes, and whether there is room for it.

Nothing is read of the weights but their shapes.
"""

import logging
import math
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.models.quantization import Quantization, is_projection
from bert4keras_rwkv.ops import devices
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.strategy import Part, Place, Strategy
from bert4keras_rwkv.weights.checkpoint import named, open_checkpoint
from bert4keras_rwkv.weights.loading import variable_shapes
from bert4keras_rwkv.weights.packed import halves_of, schemes_of, title
from bert4keras_rwkv.weights.tensors import dtype_named

HALVES = ("float16", "bfloat16")
ROOM = 0.9  # of the memory that is free; 'auto' leaves the rest to states and to what is computed
EMBEDDING = "embed/embeddings"
AT_ONCE = 2  # streamed blocks on a device: one computes, the next arrives

logger = logging.getLogger("bert4keras_rwkv")


@dataclass(frozen=True)
class Row:
    """A part of a network. name: 'embedding', '3', 'head'. bytes: of its weights as they are stored."""

    name: str
    place: Place
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a `Strategy` means for a model on this machine. Its `str` is a table.

    config: RWKVConfig. rows: of the embedding, of each block and of the head with the norm before it. free: name of a
    device -> bytes of its memory that are free, None where that is not known; without the devices that are not there.
    held: path -> `Scheme` of the matrices that are packed in the file, and stay so.
    """

    strategy: Strategy
    config: RWKVConfig
    rows: tuple[Row, ...]
    free: dict
    held: dict

    @property
    def places(self):
        """The `Place` of each block and of the head."""
        return tuple(row.place for row in self.rows[1:])

    def needed(self):
        """Name of a device -> bytes of weights that lie there, where blocks are streamed with two of them at a time.
        All processors are one device, 'cpu:0', whose memory keeps what is streamed.
        """
        found = {}
        for row in self.rows:
            name = devices.HOST if row.place.streamed else _memory(row.place.device)
            found[name] = found.get(name, 0) + row.bytes
        for name, taken in _arriving(self.rows[1:-1]).items():
            found[name] = found.get(name, 0) + taken
        return found

    def problems(self):
        """Why the model cannot be built so, as sentences; none if it can."""
        asked = Quantization.of_places(self.places)
        other = asked and next((path for path, scheme in self.held.items() if asked.scheme(path) != scheme), None)
        if other:
            yield (
                f"The file is quantised: its '{other}' is {title(self.held[other])}, and packing it again would round "
                "twice. Leave i8 and i4 out: what is packed stays so."
            )
        here = ", ".join(self.free)
        for name in dict.fromkeys(_whole(row.place.device) for row in self.rows):
            if name not in self.free:
                yield f"There is no device '{name}' here. There are: {here}."
        for name, taken in self.needed().items():
            free = self.free.get(name)
            if free is not None and taken > free:
                yield (
                    f"The weights on '{name}' take {taken:,} bytes and {free:,} are free, {taken - free:,} too few: "
                    "put fewer blocks there, or store them in i8 or i4."
                )

    def check(self):
        """Raise a ValueError with all `problems`."""
        found = list(self.problems())
        if found:
            raise ValueError(f"The strategy '{self.strategy}' cannot be: {' '.join(found)}")

    def to_dict(self):
        """The plan as plain values, for JSON."""
        rows = [
            {
                "block": row.name,
                "device": _whole(row.place.device),
                "streamed": row.place.streamed,
                "dtype": row.place.dtype,
                "stored": row.place.stored or row.place.dtype,
                "bytes": row.bytes,
            }
            for row in self.rows
        ]
        return {
            "strategy": str(self.strategy),
            "rows": rows,
            "needed_bytes": self.needed(),
            "free_bytes": self.free,
            "state_bytes": self.state_bytes,
            "problems": list(self.problems()),
        }

    @property
    def state_bytes(self):
        """Bytes of the state of one sequence, if it is all in float32."""
        return 4 * sum(map(math.prod, RWKVState.shapes(self.config)))

    def __str__(self):
        lines = [("block", "device", "dtype", "bytes")]
        for _, group in groupby(self.rows, lambda row: (row.name.isdigit(), row.place, row.bytes)):
            lines.append(_line(list(group)))
        for name, taken in self.needed().items():
            lines.append(("sum", name, "", f"{taken:,}{_of_free(name, self.free)}"))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        table = ["  ".join([*map(str.ljust, line[:3], widths), line[3]]) for line in lines]
        c = self.config
        title = f"'{self.strategy}' for {c.model}, {c.num_hidden_layers} blocks of {c.hidden_size}"
        notes = [f"The state of a sequence takes {self.state_bytes:,} bytes more.", *self.problems()]
        if self.held:
            kinds = ", ".join(dict.fromkeys(scheme.name for scheme in self.held.values()))
            notes.insert(0, f"What the file has packed, in {kinds}, stays so, and is counted so.")
        if any(_arriving(self.rows[1:-1])):
            notes.insert(0, f"Where blocks are streamed, {AT_ONCE} of them are on the device at a time, and counted.")
        return "\n".join([title, *(f"  {line}" for line in table), *notes])


def plan_of(path, strategy, format=None):
    """The `Plan` for the model in a weight file, preset folder, or shipped with the package under a name.

    strategy: a `Strategy`, or a string. format: as for `open_weights`.
    """
    strategy = Strategy.of(strategy)
    with open_checkpoint(named(path), format=format) as checkpoint:
        return plan_for(strategy, checkpoint.config, checkpoint.tensors)


def plan_for(strategy, config, tensors):
    """The `Plan` for weights, a mapping of official names with `shapes` and `dtypes`."""
    shapes = variable_shapes(config.rules(), tensors.shapes)
    free = {name: devices.free_memory(name) for name in devices.names()}
    head, halves = str(np.dtype(tensors.dtypes["head.weight"])), {*halves_of(config.rules(), tensors).values()}
    held = {path: described.scheme for path, described in schemes_of(config.rules(), tensors).items()}
    if not strategy.is_auto:
        return _planned(strategy, config, shapes, free, halves, held)
    plan = _chosen(config, shapes, free, head, halves, held)
    logger.warning("The strategy 'auto' is '%s' here.", plan.strategy)
    return plan


def _planned(strategy, config, shapes, free, halves, held):
    places = strategy.places(config.num_hidden_layers)
    sizes = _sizes(shapes, places, halves, held)
    first = places[0]
    dtype = _dtype(EMBEDDING, first.dtype, halves, held or Quantization.of_places(places))
    embedding = Place(devices.HOST if first.streamed else first.device, dtype, None)
    names = ["embedding", *map(str, range(config.num_hidden_layers)), "head"]
    rows = map(Row, names, (embedding, *places), sizes)
    return Plan(strategy, config, tuple(rows), free, held)


def _sizes(shapes, places, halves, held):
    """Bytes of the embedding and its norm, of each block, and of the head and its norm. shapes: path -> shape.
    halves: paths of `halves_of`. held: path -> `Scheme` of what is packed in the file, and stays so.
    """
    quantization, found = Quantization.of_places(places), [0] * (len(places) + 1)
    for path, shape in shapes.items():
        first, *rest = path.split("/")
        i = int(rest[0]) + 1 if first == "blocks" else 0 if first in ("embed", "ln0") else len(places)
        name = path.removesuffix("/kernel")
        scheme = held.get(name) or (quantization and is_projection(path) and quantization.scheme(name))
        if scheme:
            found[i] += sum(_bytes(*of) for of in scheme.tensors(shape[1], shape[0]).values())
        else:
            found[i] += _bytes(shape, _dtype(path, places[max(i, 1) - 1].dtype, halves, held or quantization))
    return found


def _dtype(path, dtype, halves, packed):
    """What a variable beside packed matrices is held in, where its place has a dtype. packed: whether there are any."""
    return "bfloat16" if packed and dtype == "float32" and path in halves else dtype


def _bytes(shape, dtype):
    return math.prod(shape) * dtype_named(dtype).itemsize


def _arriving(rows):
    """Name of a device -> bytes of the blocks that are streamed to it and are there at a time, at most."""
    found = {}
    for row in rows:
        if row.place.streamed:
            found.setdefault(_memory(row.place.device), []).append(row.bytes)
    return {name: max(map(sum, pairwise(sizes)), default=sizes[0]) for name, sizes in found.items()}


def _chosen(config, shapes, free, head, halves, held):
    """The plan for the first candidate with room, the best quality first. head (its dtype), halves, held: of the
    weights' file."""
    candidates = _candidates(config, shapes, free, head)
    if held:  # whatever is asked for, its matrices stay as they are
        candidates = [one for one in candidates if all(part.stored is None for part in one.parts)]
    tried = [_planned(strategy, config, shapes, free, halves, held) for strategy in candidates]
    for plan in tried:
        if all(free[name] is None or taken <= ROOM * free[name] for name, taken in plan.needed().items()):
            return plan
    least = tried[-1]
    needs = ", ".join(f"{taken:,} bytes on '{name}'" for name, taken in least.needed().items())
    has = ", ".join(f"{bytes_:,} of '{name}'" for name, bytes_ in free.items() if bytes_ is not None)
    raise ValueError(
        f"No strategy fits this machine: the least, '{least.strategy}', needs {needs}, and free are {has}, of which a "
        "tenth is left to states and to what is computed. Take a smaller model, or free some memory."
    )


def _candidates(config, shapes, free, stored):
    """Strategies for the default device, the best quality first, the last ones streamed on what is no processor."""
    device = devices.default()
    half = stored if stored in HALVES else "bfloat16"
    if device == devices.HOST:
        kinds = [("float32", None), ("bfloat16", None), ("float32", "int8"), ("float32", "int4")]
        return [_alone("cpu", *kind) for kind in kinds]
    kinds = [("float32", None)] * (stored not in HALVES) + [(half, None), (half, "int8"), (half, "int4")]
    found = [_alone(device, *kind) for kind in kinds]
    counts = range(config.num_hidden_layers - 1, -1, -1)
    return found + [_alone(device, half, "int4", count, True) for count in counts]


def _alone(*part):
    return Strategy((Part(*part),))


def _line(rows):
    """A row of the table, for equal blocks one after another."""
    first, last, place = rows[0], rows[-1], rows[0].place
    name = first.name if first is last else f"{first.name} to {last.name}"
    device = f"{_whole(place.device)}, streamed" if place.streamed else _whole(place.device)
    dtype = f"{place.dtype}, {place.stored}" if place.stored else place.dtype
    return name, device, dtype, f"{first.bytes:,}" if first is last else f"{len(rows)} times {first.bytes:,}"


def _of_free(name, free):
    """What a table says behind a sum."""
    if name not in free:
        return ", not here"
    return "" if free[name] is None else f" of {free[name]:,} free"


def _whole(device):
    """The name of a device with a number, whether it is here or not."""
    return device if ":" in device else f"{device}:0"


def _memory(device):
    """The device in whose memory lies what is put on a device."""
    return devices.HOST if device.startswith("cpu") else _whole(device)
