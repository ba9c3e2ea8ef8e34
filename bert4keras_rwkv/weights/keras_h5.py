"""Our own `.weights.h5`, as Keras saves `RWKV.model`: its one layer with weights is the backbone.

An attribute path becomes a group: 'blocks/3/time_mix/key/kernel' lies at
'layers/backbone/blocks/block_3/time_mix/key/vars/0'. Layers of Keras number their variables, ours save them under
their names.
"""

import re

from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.hdf5 import data_sets, open_hdf5
from bert4keras_rwkv.weights.rules import expanded, export, rules_of
from bert4keras_rwkv.weights.tensors import Tensors

ROOT = "layers/backbone"
OWN_NORM = "norm"  # our HeadNorm has the names that Keras' LayerNormalization numbers
NUMBERED = {"kernel": "0", "bias": "1", "gamma": "0", "beta": "1", "embeddings": "0"}


def h5_path(path):
    """Where Keras keeps the variable of an attribute path."""
    *layers, variable = path.split("/")
    folder = "/".join([ROOT, *layers])
    folder = re.sub(r"/blocks/(\d+)", lambda found: f"/blocks/block{'' if found[1] == '0' else '_' + found[1]}", folder)
    own = layers and layers[-1] == OWN_NORM
    return f"{folder}/vars/{variable if own else NUMBERED.get(variable, variable)}"


def open_keras_h5(path, config):
    """The weights of a saved `RWKV.model` as lazy `Tensors` under official names. `config` says version and sizes."""
    file = open_hdf5(path)
    try:
        found = data_sets(file)
        rules = rules_of(config.model)
        wanted = {h5_path(rule.path) for rule in expanded(rules, config.num_hidden_layers)}
        missing, extra = sorted(wanted - set(found)), sorted(set(found) - wanted)
        if missing or extra:
            lines = [f"nothing at '{name}'" for name in missing] + [f"no rule for '{name}'" for name in extra]
            raise WeightsError(
                f"'{path}' does not hold the weights of this {config.model} with {config.num_hidden_layers} layers:\n  "
                + "\n  ".join(lines[:20])
            )
        tensors = export(rules, lambda name: found[h5_path(name)], config.num_hidden_layers)
    except BaseException:
        file.close()
        raise
    return Tensors({name: tensors.entry(name) for name in tensors}, {}, file.close)
