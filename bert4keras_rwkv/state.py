"""What a model remembers of the text it has read."""

import dataclasses
import io
import json

import ml_dtypes
import numpy as np

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.untrusted import parse_json, printable, regular, shown

EMPTY_MAXIMUM = -1e30  # RWKV-4's running maximum before the first token
FORMAT = "bert4keras_rwkv.state"  # how our files name themselves
LAYOUT = "[key, value]"  # orientation of `wkv` in our files and in memory
LARGEST_HEADER = 1 << 24  # bytes, of the 100 million that safetensors allows
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}  # by safetensors' names


@dataclasses.dataclass(frozen=True)
class RWKVState:
    """The state of a batch of texts, stacked over layers.

    wkv: (B, n, H, N, N) float32, [key, value]; RWKV-4: (B, n, 3, D), numerator, denominator, running maximum.
    shift: (B, 2n, 1, D) in the compute dtype: row 2i is the last time-mix input of layer i, row 2i + 1 its last
    channel-mix input. model: 'rwkv6', ..., or None when it is not known. Both arrays may be of any library that the
    backend takes. A state of batch 1 broadcasts.
    """

    wkv: object
    shift: object
    model: str | None = None

    def __repr__(self):
        wkv, shift = tuple(self.wkv.shape), tuple(self.shift.shape)
        return f"<RWKVState {self.model or 'of a model not known'}, {wkv[0]} rows, wkv {wkv}, shift {shift}>"

    @classmethod
    def zeros(cls, config, batch=1, dtype="float32"):
        """The state before the first token, as NumPy arrays. dtype: of `shift`."""
        shapes = cls.shapes(config)
        wkv, shift = (np.zeros((batch, *shape), kind) for shape, kind in zip(shapes, ("float32", dtype), strict=True))
        if config.num_attention_heads is None:
            wkv[:, :, 2] = EMPTY_MAXIMUM
        return cls(wkv, shift, config.model)

    @staticmethod
    def shapes(config):
        """The shapes of `wkv` and `shift` for one row."""
        c, n = config, config.num_hidden_layers
        H, N = c.num_attention_heads, c.attention_head_size
        return (n, 3, c.hidden_size) if H is None else (n, H, N, N), (2 * n, 1, c.hidden_size)

    def check(self, config, what="This"):
        """A ValueError, about `what`, unless this is a state of such a model, by version and sizes."""
        wanted, received = self.shapes(config), (tuple(self.wkv.shape[1:]), tuple(self.shift.shape[1:]))
        if self.model not in (None, config.model) or received != wanted:
            raise ValueError(
                f"{what} is a state of {self.model or 'an unknown model'}, with wkv {received[0]} and shift "
                f"{received[1]} for each text. This {config.model} wants wkv {wanted[0]} and shift {wanted[1]}."
            )

    @property
    def batch(self):
        """How many texts it holds."""
        return int(self.wkv.shape[0])

    def __getitem__(self, rows):
        """The state of some rows: an int, a slice, a list of ints, or a list of bools. The batch axis stays."""
        if isinstance(rows, int | np.integer) and not -self.batch <= rows < self.batch:
            raise IndexError(f"A state of {self.batch} rows has no row {rows}.")
        index = np.atleast_1d(np.arange(self.batch)[rows])
        return dataclasses.replace(self, wkv=_rows(self.wkv, index), shift=_rows(self.shift, index))

    @classmethod
    def stack(cls, states):
        """Join states along the batch axis."""
        states = list(states)
        if not states:
            raise ValueError("Expected at least one state to stack. Received: none.")
        model = _one_model(states)
        from bert4keras_rwkv.keras_loader import ops

        wkv, shift = (ops.concatenate([getattr(s, name) for s in states], axis=0) for name in ("wkv", "shift"))
        return cls(wkv, shift, model)

    def unstack(self):
        """A list of states of one row each."""
        return [self[i] for i in range(self.batch)]

    def fork(self, copies):
        """A state whose rows are each repeated `copies` times, one after the other."""
        return self[[i for i in range(self.batch) for _ in range(copies)]]

    @classmethod
    def average(cls, states, weights=None):
        """The weighted mean of states of one model and batch, as NumPy arrays.

        weights: one for each state, not negative, divided by their sum; None: all the same. Of RWKV-4 the sums that
        the state stands for are averaged, numerator e^maximum and denominator e^maximum; the maximum only keeps them
        from overflowing, so the answer has the largest that counts. A state of weight 0 leaves no trace.
        """
        states = [state.numpy() for state in states]
        weights = _shares(weights, len(states))
        model = _one_model(states)
        batches = sorted({state.batch for state in states})
        if len(batches) > 1:
            raise ValueError(f"States of one batch are averaged. Received: batches of {batches}. Take rows of them.")
        counted = [(state, share) for state, share in zip(states, weights, strict=True) if share > 0]
        states, weights = zip(*counted, strict=True)
        wkv = _mean if states[0].wkv.ndim == 5 else _mean_of_quotients
        return cls(wkv([s.wkv for s in states], weights), _mean([s.shift for s in states], weights), model)

    def interpolate(self, other, share):
        """The state `share` of the way to another: this one at 0, the other at 1."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"`share` is how far to go to the other state, in [0, 1]. Received: share={share}.")
        return RWKVState.average([self, other], [1.0 - share, share])

    def numpy(self):
        """The same state as NumPy arrays."""
        return dataclasses.replace(self, wkv=_numpy(self.wkv), shift=_numpy(self.shift))

    def save(self, path):
        """Write a safetensors file, whole or not at all: `wkv`, `shift`, and in its metadata the model's version and
        the layout.
        """
        with atomic_file(path) as unfinished:
            unfinished.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path):
        """Read a file of `save`. Raises ValueError for anything else, damage included, with the name of the file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(regular(path, "States"), "numpy") as file:
                _check_metadata(file.metadata() or {}, file.keys(), path)
                return cls._of_arrays(file.get_tensor("wkv"), file.get_tensor("shift"), file.metadata(), path)
        except SafetensorError as error:
            raise ValueError(_damaged(path, error)) from error

    def to_bytes(self, **metadata):
        """What `save` writes. metadata: more texts for the header, which `load` leaves alone."""
        from safetensors.numpy import save

        state = self.numpy()
        arrays = {name: np.ascontiguousarray(getattr(state, name)) for name in ("wkv", "shift")}
        said = {"format": FORMAT, "version": "1", "layout": LAYOUT, "model": self.model or ""}
        return _sorted(save(arrays, metadata | said))

    @classmethod
    def from_bytes(cls, data, where="the state"):
        """The state in what `to_bytes` gave, and all metadata, a dict. Raises ValueError, about `where`, as `load`."""
        from safetensors import SafetensorError, deserialize

        try:
            tensors = dict(deserialize(data))
        except SafetensorError as error:
            raise ValueError(_damaged(where, error)) from error
        metadata = read_metadata(io.BytesIO(data), where)
        _check_metadata(metadata, tensors, where)
        wkv, shift = (_array(tensors[name], where) for name in ("wkv", "shift"))
        return cls._of_arrays(wkv, shift, metadata, where), metadata

    @classmethod
    def _of_arrays(cls, wkv, shift, metadata, where):
        if wkv.ndim not in (4, 5) or shift.ndim != 4 or shift.shape[:2] != (wkv.shape[0], 2 * wkv.shape[1]):
            raise ValueError(
                "In a state file `wkv` is (B, n, H, N, N), or (B, n, 3, D), and `shift` (B, 2n, 1, D). Received: wkv "
                f"{wkv.shape}, shift {shift.shape} in {where}. Save the state again."
            )
        return cls(wkv, shift, metadata.get("model") or None)


def read_metadata(file, where):
    """The texts in the header of an open safetensors file, a dict. ValueError, about `where`, if there is none."""
    size = int.from_bytes(file.read(8), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"The header of {where} claims {size} bytes. Save the state again.")
    header = parse_json(file.read(size), f"The header of {where}")
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise ValueError(f"The header of {where} has no texts under names. Save the state again.")
    return metadata


def _check_metadata(metadata, names, where):
    """A ValueError unless these are the metadata and tensors of a state."""
    if metadata.get("format") != FORMAT or set(names) != {"wkv", "shift"}:
        raise ValueError(
            f"Expected a state file of `RWKVState.save` (tensors 'wkv' and 'shift'). Received: {where} "
            f"with {shown(sorted(names))}. `RWKV.load_state` reads those of other programs."
        )
    if metadata.get("version") != "1" or metadata.get("layout") != LAYOUT:
        raise ValueError(f"A state file of a layout this package does not know: {shown(metadata)} in {where}.")


def _damaged(where, error):
    said = f"Expected a safetensors state file: {where} is not one, or not whole: {error}. Save the state again."
    return printable(said)


def _array(tensor, where):
    """The array of what safetensors tells of a tensor."""
    if tensor["dtype"] not in DTYPES:
        raise ValueError(f"A state has numbers of {', '.join(DTYPES)}. Received: {tensor['dtype']} in {where}.")
    return np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _sorted(data):
    """A safetensors file with the keys of its header in order: the library writes those of the metadata in any."""
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:size]), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return data[:8] + header.encode().ljust(size - 8) + data[size:]


def _one_model(states):
    """The model whose states these are, None when none says it. A ValueError if they are of several."""
    models = {s.model for s in states} - {None}
    kinds = {(tuple(s.wkv.shape[1:]), tuple(s.shift.shape[1:])) for s in states}
    if len(models) > 1 or len(kinds) > 1:
        raise ValueError(f"States of one model are joined. Received: models {sorted(models)}, shapes {sorted(kinds)}.")
    return models.pop() if models else None


def _shares(weights, count):
    """Weights of `count` states as shares of 1."""
    given = np.ones(count) if weights is None else np.asarray(weights, "float64")
    if count == 0 or given.shape != (count,) or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise ValueError(
            "An average is of at least one state, with a weight for each, none negative and not all 0. Received: "
            f"{count} states, weights {None if weights is None else given.tolist()}."
        )
    return given / given.sum()


def _mean(arrays, weights):
    """The mean of arrays of one shape, summed in float64, in the dtype of the first."""
    return sum(weight * array.astype("float64") for array, weight in zip(arrays, weights, strict=True)).astype(
        arrays[0].dtype
    )


def _mean_of_quotients(arrays, weights):
    """The mean of RWKV-4's (B, n, 3, D): sums times e^-maximum, and that maximum."""
    highest = np.max([array[:, :, 2:] for array in arrays], axis=0)
    sums = [array[:, :, :2] * np.exp(array[:, :, 2:].astype("float64") - highest) for array in arrays]
    return np.concatenate([_mean(sums, weights).astype(highest.dtype), highest], axis=2)


def _numpy(array):
    """An array of any library as NumPy's."""
    if isinstance(array, np.ndarray):
        return array
    from bert4keras_rwkv.keras_loader import ops

    return ops.convert_to_numpy(array)


def _rows(array, index):
    """The rows `index` (NumPy ints) of an array of any library; TensorFlow's cannot be indexed by a list."""
    if isinstance(array, np.ndarray):
        return array[index]
    from bert4keras_rwkv.keras_loader import ops

    return ops.take(array, index, axis=0)
