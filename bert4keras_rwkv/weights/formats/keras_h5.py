"""Our own `.weights.h5`, as Keras saves `RWKV.model`: its one layer with weights is the backbone.

An attribute path becomes a group: 'blocks/3/time_mix/key/kernel' lies at
'layers/backbone/blocks/block_3/time_mix/key/vars/0'. Layers of Keras number their variables, ours save them under
their names.
"""

import json
import math
import re
from pathlib import Path

import h5py
import numpy as np

from bert4keras_rwkv.atomic import atomic_file, atomic_folder, check_room
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.casting import cast, report
from bert4keras_rwkv.weights.folder import CONFIG, TEMPLATE, VOCABULARY, WEIGHTS, config_beside, key_beside
from bert4keras_rwkv.weights.formats.hdf5 import MAGIC, data_sets, holds, open_hdf5, weights_only
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.loading import export, to_variables
from bert4keras_rwkv.weights.packed import KEY, as_json, from_json, packed_tensor, parts_of, schemes_of, stored_dtype
from bert4keras_rwkv.weights.shards import every_problem, weight_map
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, array_tensor, as_tensors, dtype_named, transposed

ROOT = "layers/backbone"
# Of a model that was tuned: kernels have the LoRA added, and the rest has files of its own.
TUNED = re.compile(rf"{ROOT}/(start_states/.*|vars/tuned_state|.*/vars/(lora|base)_\w+)")
INDEX = ".weights.json"  # how Keras' index of shards ends
OWN_NORM = "norm"  # our HeadNorm has the names that Keras' LayerNormalization numbers
NUMBERED = {"kernel": "0", "bias": "1", "gamma": "0", "beta": "1", "embeddings": "0"}
OVERHEAD = 1024  # bytes of a data set beside its numbers, about


def h5_path(path):
    """Where Keras keeps the variable of an attribute path."""
    *layers, variable = path.split("/")
    folder = "/".join([ROOT, *layers])
    folder = re.sub(r"/blocks/(\d+)", lambda found: f"/blocks/block{'' if found[1] == '0' else '_' + found[1]}", folder)
    own = layers and layers[-1] == OWN_NORM
    return f"{folder}/vars/{variable if own else NUMBERED.get(variable, variable)}"


def is_keras_h5(path, start):
    """Whether it is an HDF5 file with the groups of our own, or Keras' index of several."""
    if path.name.endswith(INDEX) and start.lstrip().startswith(b"{"):
        return True
    return start.startswith(MAGIC) and holds(path, ROOT)


def stored(path):
    """(path inside -> `Tensor`, a function that closes) of a file, or of the shards that an index names."""
    path = Path(path)
    if not path.name.endswith(INDEX):
        file = open_hdf5(path)
        return _or_close(file.close, lambda: data_sets(file)), file.close
    places = {}  # shard -> its groups of variables
    for group, files in weight_map(path, several=True).items():
        for file in files if isinstance(files, list) else [files]:
            places.setdefault(file, set()).add(group.strip("/"))
    opened, problems = {}, [f"the shard '{file}' is missing" for file in places if not (path.parent / file).is_file()]
    every_problem(path, problems)

    def close():
        for file in opened.values():
            file.close()

    def read():
        found = {}
        for file, groups in places.items():
            opened[file] = open_hdf5(path.parent / file)
            for name, tensor in data_sets(opened[file]).items():
                if name in found:
                    problems.append(f"'{name}' is in two shards, '{file}' is one")
                elif name.rpartition("/")[0] not in groups:
                    problems.append(f"'{file}' holds '{name}', which by the index it should not")
                found[name] = tensor
        every_problem(path, problems)
        return found

    return _or_close(close, read), close


def _or_close(close, read):
    """`read()`, after whose errors everything is closed."""
    try:
        return read()
    except BaseException:
        close()
        raise


def open_keras_h5(path, config=None):
    """The weights of a saved `RWKV.model` as lazy `Tensors` under official names.

    config: version and sizes; None: from the `config.json` beside the file.
    """
    config = config or config_beside(path)
    if config is None:
        raise WeightsError(f"'{path}' needs the model's sizes. Put its '{CONFIG}' beside it, or give the config.")
    found, close = stored(path)
    entries, metadata = _or_close(close, lambda: _official(found, config, path))
    return Tensors(entries, metadata, close)


def _official(found, config, path):
    """Data sets as tensors under official names, and metadata; missing or extra ones are one `WeightsError`."""
    if config.num_hidden_layers > len(found):  # before a table of so many layers is made
        raise WeightsError(f"'{path}' holds {len(found)} arrays, which cannot be {config.num_hidden_layers} layers.")
    rules = config.rules()
    packed = from_json(key_beside(path, KEY) or [], rules)
    places = {rule.path: _places(rule.path, packed) for rule in filled(rules)}
    wanted = {place for some in places.values() for place in some.values()}
    _compare(wanted, {name for name in weights_only(found) if not TUNED.fullmatch(name)}, config, path)
    if any(h5_path(f"{name}/lora_a") in found for name in packed):
        raise WeightsError(f"'{path}' is quantised and has a LoRA. `load_weights` of a Keras model reads both.")
    kernels = {
        name: _matrix(name, packed[name], {part: found[place] for part, place in places[f"{name}/kernel"].items()})
        for name in packed
    }

    def tensor(name):
        kernel = kernels.get(name.removesuffix("/kernel"))
        return found[places[name][None]] if kernel is None else transposed(kernel)

    entries = export(rules, tensor).entries()
    names = {rule.path.removesuffix("/kernel"): rule.names[0] for rule in filled(rules)}
    blocks = {names[path]: described.scheme.name for path, described in packed.items()}
    metadata = {"blocks": blocks, "stored_bytes": sum(found[place].nbytes for place in wanted)} if packed else {}
    return entries | {names[path]: kernel for path, kernel in kernels.items()}, metadata


def _places(path, packed):
    """Name of a part, None for a whole -> where it lies, for the variable of an attribute path."""
    owner = path.removesuffix("/kernel")
    if owner == path or owner not in packed:
        return {None: h5_path(path)}
    return {part: h5_path(f"{owner}/{part}") for part in parts_of(packed[owner].scheme)}


def _matrix(name, described, parts):
    """The matrix of packed parts."""
    return packed_tensor(name, (parts["packed"].shape or (0,))[0], described, parts)


def _compare(wanted, ours, config, path):
    """Raise one `WeightsError` for all data sets that are missing or too many."""
    missing, extra = sorted(wanted - ours), sorted(ours - wanted)
    if not missing and not extra:
        return
    lines = [f"nothing at '{name}'" for name in missing] + [f"no rule for '{name}'" for name in extra]
    if any(name.endswith("/vars/packed") for name in extra):
        lines.insert(0, f"it is quantised otherwise than the '{KEY}' in a '{CONFIG}' beside it says")
    raise WeightsError(
        f"'{path}' does not hold the weights of this {config.model} with {config.num_hidden_layers} layers:\n  "
        + "\n  ".join(lines[:20])
    )


def write_keras_h5(path, mapping, config, dtype=None, progress=None):
    """Write official name -> array as the `.weights.h5` that `RWKV.model.load_weights` reads.

    dtype: what its tensors are cast to; None: each its own, and packed ones stay so. Returns how those are packed, see
    `packed.schemes_of`. Names that are missing or too many, or shapes that cannot be, are one `WeightsError`, before
    anything is written.
    """
    rules, tensors = config.rules(), cast(mapping, dtype)
    variables, packed = to_variables(rules, tensors), schemes_of(rules, tensors)
    names = {rule.path: rule.names[0] for rule in filled(rules)}
    size = sum(_stored_bytes(tensors.entry(names[name])) + OVERHEAD for name in variables)
    with atomic_file(path) as unfinished:
        check_room(unfinished, size)  # HDF5 leaves a full disk in pieces
        with h5py.File(unfinished, "w") as file:
            for index, name in enumerate(variables):
                held = tensors.entry(names[name]).packed
                if held is None:
                    _write(file, h5_path(name), variables.entry(name))
                else:
                    for part, array in held.read().items():
                        _write(file, h5_path(f"{name.removesuffix('/kernel')}/{part}"), array_tensor(array))
                report(progress, index + 1, variables)
    return packed


def _stored_bytes(entry):
    """Those of a tensor's numbers in a file."""
    if entry.packed is None:
        return entry.nbytes
    parts = entry.packed.scheme.tensors(*entry.shape).values()
    return sum(math.prod(shape) * dtype_named(dtype).itemsize for shape, dtype in parts)


def _write(file, path, entry):
    """One data set, piece by piece."""
    bfloat16 = entry.dtype == dtype_named("bfloat16")
    stored = np.dtype("V2") if bfloat16 else entry.dtype
    item = file.create_dataset(path, entry.shape, stored)
    for where, part in entry.parts():
        item[where] = np.ascontiguousarray(part).view(stored)
    if bfloat16:
        item.attrs["dtype"] = "bfloat16"  # how Keras marks its two opaque bytes


def write_preset(folder, tensors, config, dtype=None, tokenizer=None, progress=None):
    """A preset folder: config.json, model.weights.h5 and, if there is one, the vocabulary.

    dtype: as for `write_keras_h5`. The `metadata` of tensors may name a template. It may replace another preset, and
    other files stay. A config.json without our weights is another program's, and a ValueError.
    """
    if Path(folder, CONFIG).exists() and not list(Path(folder).glob("*.weights.*")):
        raise ValueError(f"'{folder}' holds a '{CONFIG}' of something else, which would be lost. Name another folder.")
    with atomic_folder(folder) as unfinished:
        packed = write_keras_h5(unfinished / WEIGHTS, tensors, config, dtype, progress)
        keys = {**config.to_dict(), "dtype": str(dtype or stored_dtype(as_tensors(tensors)))}
        if packed:
            keys[KEY] = as_json(packed)
        if TEMPLATE in as_tensors(tensors).metadata:
            keys[TEMPLATE] = as_tensors(tensors).metadata[TEMPLATE]
        if tokenizer is not None and tokenizer.file_name is not None:
            keys[VOCABULARY] = tokenizer.file_name
            tokenizer.save(unfinished / tokenizer.file_name)
        (unfinished / CONFIG).write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")


VERSIONS = ("4", "5", "6", "7")
FORMAT = Format(
    "preset",
    "our preset folder and `.weights.h5`",
    VERSIONS,
    is_keras_h5,
    open_keras_h5,
    "",
    write_preset,
    vocabulary=True,
)
