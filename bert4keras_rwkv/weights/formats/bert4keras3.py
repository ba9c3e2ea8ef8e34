"""The `.weights.h5` that bert4keras3 saves for its RWKV-6, as lazy tensors under official names.

Its groups are named by class and number ('time_mix', 'time_mix_1', ...). The low-rank products are kept apart there
and are joined here in the order w, k, v, r, g; GroupNorm is two affine maps, one after the other, and becomes one.
"""

import numpy as np

from bert4keras_rwkv.weights.formats.hdf5 import LAYERS, MAGIC, data_sets, holds, open_hdf5, weights_only
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, derived, vector

ORDER = "wkvrg"
DENSES = {"receptance": "dense_r", "key": "dense_k", "value": "dense_v", "output": "dense_o", "gate": "dense_g"}


def is_bert4keras3(path, start):
    """Whether it is an HDF5 file with the groups of an RWKV-6 of bert4keras3."""
    return start.startswith(MAGIC) and holds(path, "layers/time_mix/dense_xw", "layers/channel_mix")


def open_bert4keras3(path, config=None):
    """The weights as lazy `Tensors`. A group that is missing, or one too many, is a `WeightsError`."""
    file = open_hdf5(path)
    try:
        weights = weights_only(data_sets(file))
        found = _Noted({name.removeprefix(LAYERS): tensor for name, tensor in weights.items()})
        entries = _entries(found)
        extra = sorted(set(found) - found.asked)
        if extra:
            raise WeightsError(f"'{path}' has groups that no RWKV-6 of bert4keras3 has: {', '.join(extra[:5])}.")
    except KeyError as error:
        file.close()
        raise WeightsError(
            f"'{path}' looks like an RWKV-6 of bert4keras3, but has no group 'layers/{error.args[0]}'."
        ) from error
    except BaseException:
        file.close()
        raise
    return Tensors(entries, {"format": "bert4keras3"}, file.close)


def _entries(found):
    """Official name -> `Tensor`, from the data sets of the file."""
    layers = 0
    while f"{_numbered('time_mix', layers)}/vars/0" in found:
        layers += 1
    entries = {"emb.weight": found["embedding/vars/0"]}
    for block in range(layers):
        norms = [("ln1", 2 * block + 1), ("ln2", 2 * block + 2)] + ([("ln0", 0)] if block == 0 else [])
        for norm, number in norms:
            entries.update(_norm(found, f"blocks.{block}.{norm}", number))
        entries.update(_time_mix(found, f"blocks.{block}.att.", _numbered("time_mix", block)))
        entries.update(_channel_mix(found, f"blocks.{block}.ffn.", _numbered("channel_mix", block)))
    entries.update(_norm(found, "ln_out", 2 * layers + 1))
    entries["head.weight"] = derived(np.transpose, found["dense/vars/0"])
    return entries


def _time_mix(found, official, group):
    """The tensors of one time mix."""
    vectors = {"time_maa_x": "vars/0", **{f"time_maa_{letter}": f"dense_x{letter}/dense_b/vars/1" for letter in ORDER}}
    entries = {name: derived(vector, found[f"{group}/{where}"]) for name, where in vectors.items()}
    first = [found[f"{group}/dense_x{letter}/dense_a/vars/0"] for letter in ORDER]
    second = [found[f"{group}/dense_x{letter}/dense_b/vars/0"] for letter in ORDER]
    entries["time_maa_w1"] = derived(lambda *parts: np.concatenate(parts, axis=1), *first)
    entries["time_maa_w2"] = derived(lambda *parts: np.stack(parts), *second)
    entries["time_decay"] = derived(vector, found[f"{group}/dense_w/dense_b/vars/1"])
    entries["time_decay_w1"] = found[f"{group}/dense_w/dense_a/vars/0"]
    entries["time_decay_w2"] = found[f"{group}/dense_w/dense_b/vars/0"]
    entries["time_faaaa"] = found[f"{group}/vars/1"]
    for name, dense in DENSES.items():
        entries[f"{name}.weight"] = derived(np.transpose, found[f"{group}/{dense}/vars/0"])
    inner = [found[f"{group}/group_norm/group_ln/vars/{number}"] for number in (0, 1)]  # (N,) for every head alike
    outer = [found[f"{group}/group_norm/vars/{number}"] for number in (0, 1)]  # (H, N)
    entries["ln_x.weight"] = derived(lambda scale, outer: (scale * outer).reshape(-1), inner[0], outer[0])
    entries["ln_x.bias"] = derived(lambda offset, scale, outer: (offset * scale + outer).reshape(-1), inner[1], *outer)
    return {official + name: tensor for name, tensor in entries.items()}


def _channel_mix(found, official, group):
    """The tensors of one channel mix."""
    entries = {
        "time_maa_k": derived(vector, found[f"{group}/vars/0"]),
        "time_maa_r": derived(vector, found[f"{group}/vars/1"]),
    }
    for name in ("key", "receptance", "value"):
        entries[f"{name}.weight"] = derived(np.transpose, found[f"{group}/dense_{name}/vars/0"])
    return {official + name: tensor for name, tensor in entries.items()}


def _norm(found, official, number):
    """Scale and offset of the layer normalisation with this number."""
    group = _numbered("layer_normalization", number)
    return {f"{official}.weight": found[f"{group}/vars/0"], f"{official}.bias": found[f"{group}/vars/1"]}


def _numbered(name, number):
    """Keras' name for the number-th group of a class: 'time_mix', 'time_mix_1', ..."""
    return f"{name}_{number}" if number else name


class _Noted(dict):
    """A dict that remembers which of its keys were asked for."""

    def __init__(self, items):
        super().__init__(items)
        self.asked = set()

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)


FORMAT = Format("bert4keras3", "bert4keras3's `.weights.h5`", ("6",), is_bert4keras3, open_bert4keras3)
