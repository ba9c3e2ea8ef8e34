"""A chat as one file: safetensors, in which the states are tensors, and all else is JSON in one of bytes."""

import json
from typing import NamedTuple

import numpy as np

from bert4keras_rwkv.chat.turns import Record
from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.request import seeds, whole_number
from bert4keras_rwkv.session import Place
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.templates import Template
from bert4keras_rwkv.templates.files import from_values
from bert4keras_rwkv.tokenizers.prompts import token_ids
from bert4keras_rwkv.untrusted import parse_json, printable, shown
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors, write_safetensors
from bert4keras_rwkv.weights.tensors import WeightsError, dtype_named

FORMAT, VERSION = "bert4keras_rwkv.chat", "1"
SAID = "chat"  # the tensor of bytes
ARRAYS = ("wkv", "shift")
PLACES = ("before_reply", "after_reply")


class Saved(NamedTuple):
    """What a file holds, checked; see `Chat`."""

    template: Template
    system: str | None
    mode: str | None
    sampling: Sampling
    max_new_tokens: int
    first: list
    start: Place
    seed: np.ndarray
    records: list


def write_chat(path, rwkv, settings, first, start, seed, records):
    """Write a chat, whole or not at all. settings: what `Saved` has from template to max_new_tokens, as JSON."""
    states = {}

    def place(one):
        if one is None:
            return None
        number = None
        if one.before is not None:
            number = states.setdefault(id(one.before), (len(states), one.before.numpy()))[0]
        return {"state": number, "last": _plain(one.last), "seed": _plain(one.seed)}

    turns = [
        {
            **{name: getattr(record, name) for name in ("message", "role", "mode", "opening", "raw", "drawn")},
            **{name: list(map(int, getattr(record, name))) for name in ("asked", "written")},
            **{name: _plain(getattr(record, name)) for name in ("seed", "end_seed")},
            **{name: place(getattr(record, name)) for name in PLACES},
        }
        for record in records
    ]
    said = {
        "model": {"name": rwkv.origin.name, **rwkv.config.to_dict()},
        "settings": settings,
        "first": list(map(int, first)),
        "start": place(start),
        "seed": _plain(seed),
        "turns": turns,
    }
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    tensors = {SAID: np.frombuffer(text, np.uint8)}
    for number, state in states.values():
        tensors |= {f"states.{number}.{name}": getattr(state, name) for name in ARRAYS}
    write_safetensors(path, tensors, metadata={"format": FORMAT, "version": VERSION})


def read_chat(path, rwkv):
    """The `Saved` in a file of `write_chat`, for this model. A ValueError names the file and what is wrong with it."""
    try:
        with open_safetensors(path) as tensors:
            said = tensors.metadata.get("format"), tensors.metadata.get("version")
            if said != (FORMAT, VERSION) or SAID not in tensors or tensors.dtypes[SAID] != np.uint8:
                raise WeightsError(f"its header says {shown(said)}, and that of a chat {(FORMAT, VERSION)}")
            values = parse_json(tensors[SAID].tobytes(), "what it says")
            _check_model(values["model"], rwkv)
            return _saved(values, tensors, rwkv)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        what = f"something is missing or of another kind ({type(error).__name__}: {error})"
        reason = str(error) if isinstance(error, ValueError) else what
        none = isinstance(error, WeightsError)
        rule = "is no conversation that `Chat.save` wrote, or not whole" if none else "cannot be gone on with"
        raise ValueError(printable(f"'{path}' {rule}: {reason}")) from error


def _check_model(said, rwkv):
    """Raise unless the chat was with this model, by name and sizes."""
    here = {"name": rwkv.origin.name, **rwkv.config.to_dict()}
    other = [
        f"{name}: {shown(said.get(name))}, here {shown(here[name])}" for name in here if said.get(name) != here[name]
    ]
    if other:
        renamed = len(other) == 1 and said.get("name") != here["name"]
        way_out = " If it is the same one: set rwkv.origin = rwkv.origin._replace(name=...)." if renamed else ""
        raise ValueError(f"the chat was with another model. {'; '.join(other)}.{way_out}")


def _saved(values, tensors, rwkv):
    config, settings = rwkv.config, values["settings"]
    template = from_values(settings["template"], "its template")
    template.mode(settings["mode"])
    states = {}

    def place(one):
        if one is None:
            return None
        number, last = one["state"], one["last"]
        if number is not None and number not in states:
            states[number] = _state(tensors, number, rwkv)
        last = None if last is None else _ids(last, config).reshape(1, -1)
        if last is not None and not last.size:
            raise ValueError("a place has no ids that wait")
        return Place(states.get(number), last, _seed(one["seed"]))

    records = []
    for turn in values["turns"]:
        fields = {name: _kind(turn[name], str, name) for name in ("message", "role", "opening", "raw")}
        fields["mode"] = None if turn["mode"] is None else _kind(turn["mode"], str, "mode")
        fields["drawn"] = _kind(turn["drawn"], int, "drawn")
        fields |= {name: _ids(turn[name], config).tolist() for name in ("asked", "written")}
        fields |= {name: _seed(turn[name]) for name in ("seed", "end_seed")}
        records.append(Record(**fields, **{name: place(turn[name]) for name in PLACES}))
    system = settings["system"]
    return Saved(
        template,
        None if system is None else _kind(system, str, "system"),
        settings["mode"],
        Sampling(**_kind(settings["sampling"], dict, "sampling")),
        whole_number("max_new_tokens", settings["max_new_tokens"], 1),
        _ids(values["first"], config).tolist(),
        place(_kind(values["start"], dict, "start")),
        _seed(values["seed"]),
        records,
    )


def _state(tensors, number, rwkv):
    """An RWKVState of one row, of this model."""
    names = [f"states.{number}.{name}" for name in ARRAYS]
    wanted = [(1, *shape) for shape in RWKVState.shapes(rwkv.config)]
    for name, shape in zip(names, wanted, strict=True):
        if name not in tensors or tensors.shapes[name] != shape:
            raise ValueError(f"the state {shown(name)} is missing, or not of the shape {shape}")
    wkv, shift = (tensors[name] for name in names)
    if np.isnan(wkv).any() or np.isnan(shift).any():
        raise ValueError(f"the state {names[0].rpartition('.')[0]} has numbers that are none")
    return RWKVState(wkv, shift.astype(dtype_named(rwkv.backbone.compute_dtype)), rwkv.config.model)


def _plain(array):
    """Ids or a seed (1, n) as a list of int; None as it is."""
    return None if array is None else np.asarray(array)[0].tolist()


def _kind(value, kind, name):
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"its `{name}` is a {kind.__name__}. Received: {shown(value)}")
    if kind is str:
        value.encode()  # a ValueError for what is no text, such as half a pair of surrogates
    return value


def _ids(value, config):
    if not isinstance(value, list):
        raise ValueError(f"ids are a list. Received: {shown(value)}")
    return token_ids(np.array(value, None if value else "int64"), config.vocab_size)


def _seed(value):
    return seeds(np.array([value]), 1)
