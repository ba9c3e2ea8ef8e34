"""A place as bytes: a file of `RWKVState.save`, whose header says more. What comes back is checked first."""

import dataclasses
import io
import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.server.places import Place
from bert4keras_rwkv.server.protocol import ApiError
from bert4keras_rwkv.state import FORMAT, RWKVState, read_metadata
from bert4keras_rwkv.tokenizers.prompts import token_ids
from bert4keras_rwkv.untrusted import parse_json, shown
from bert4keras_rwkv.weights.casting import is_floating
from bert4keras_rwkv.weights.states import read_state
from bert4keras_rwkv.weights.tensors import dtype_named

ROOM = 1 << 21  # bytes of a header at most: the ids that wait stand in it
NUMBER = re.compile("[0-9]{1,15}")


class OtherModelError(ValueError):
    """A state of another model."""


@dataclasses.dataclass(frozen=True)
class StateKind:
    """What a state has to be for the model that is served.

    fingerprint: a text that other weights do not have. dtype: of `shift`.
    """

    fingerprint: str
    config: RWKVConfig
    dtype: str = "float32"

    @property
    def dtypes(self):
        """The NumPy dtypes of `wkv` and `shift`."""
        return dtype_named("float64" if self.dtype == "float64" else "float32"), dtype_named(self.dtype)

    @property
    def bytes(self):
        """Of the numbers of one state."""
        shapes = RWKVState.shapes(self.config)
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in zip(self.dtypes, shapes, strict=True))

    @property
    def largest(self):
        """Bytes of a file of one state at most; one that others wrote may have numbers of twice the size."""
        return 2 * self.bytes + ROOM

    def fitting(self, state):
        """The RWKVState in the dtypes of this kind. ValueError unless it is one finite row of this model's shapes."""
        try:
            state.check(self.config)
        except ValueError as error:
            raise OtherModelError(str(error)) from error
        arrays = state.wkv, state.shift
        if {len(array) for array in arrays} != {1}:
            raise ValueError(f"A state of one text is wanted. Received: {state.batch}.")
        if not all(is_floating(array.dtype) for array in arrays):
            raise ValueError(f"A state has numbers with a fraction. Received: {state.wkv.dtype}, {state.shift.dtype}.")
        with np.errstate(over="ignore"):
            wkv, shift = (array.astype(dtype) for array, dtype in zip(arrays, self.dtypes, strict=True))
        if not (np.isfinite(wkv).all() and np.isfinite(shift).all()):
            raise ValueError("The state has numbers that are not finite.")
        return RWKVState(wkv, shift, self.config.model)


def packed(place, kind, **texts):
    """A `Place` as the bytes of a safetensors file. texts: more to say in its header."""
    said = {"fingerprint": kind.fingerprint, "waiting": json.dumps(list(map(int, place.waiting)))}
    data = place.state.to_bytes(**texts, **said, count=str(place.count))
    if len(data) > kind.largest:
        raise ValueError(f"A state has {kind.largest} bytes at most. Received: {len(data)}, for many ids wait.")
    return data


def unpacked(data, kind):
    """The `Place` in the bytes of `packed`, or of any file of `RWKVState.save`, and the texts of its header, a dict.

    Raises OtherModelError, or another ValueError, unless it is whole and fits.
    """
    state, said = RWKVState.from_bytes(data)
    if said.get("fingerprint", kind.fingerprint) != kind.fingerprint:
        raise OtherModelError(f"The state is of the model {shown(said['fingerprint'])}. Here is: {kind.fingerprint}.")
    waiting, count = _waiting(said.get("waiting", "[]"), kind.config.vocab_size), said.get("count", "0")
    if not NUMBER.fullmatch(count) or int(count) < len(waiting):
        raise ValueError(f"A state says how many tokens it stands for. Received: {shown(count)}.")
    return Place(kind.fitting(state), waiting, int(count)), said


def _waiting(text, vocab_size):
    ids = parse_json(text, "What is said to wait")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ValueError(f"The ids that wait are a list. Received: {shown(ids)}.")
    return tuple(token_ids(np.array(ids, None if ids else "int64"), vocab_size).tolist())


def read_file(data, kind, layout="auto"):
    """The `Place` in the bytes of any state file that `RWKV.load_state` knows. layout: as there. Raises ValueError."""
    own = data[8:9] == b"{" and read_metadata(io.BytesIO(data), "the state").get("format") == FORMAT
    if own and layout in ("auto", "own"):
        return unpacked(data, kind)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(data)
        try:
            return Place(kind.fitting(read_state(path, kind.config, layout, kind.dtype)), (), 0)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "state")) from error


def told_of(field, function, *arguments):
    """`function(*arguments)`. Its ValueErrors are ApiErrors 400 about a field of a request."""
    try:
        return function(*arguments)
    except ValueError as error:
        code = "state_model" if isinstance(error, OtherModelError) else "invalid_state"
        raise ApiError(400, f"`{field}`: {error}", field, code) from error
