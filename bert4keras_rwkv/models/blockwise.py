"""A model that is run straight from its file, one block in memory at a time: for looking at files, not for speed."""

import numpy as np

from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.models.backbone import layer_state, new_block, side_values, variable_at
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.loading import assign
from bert4keras_rwkv.weights.tensors import Tensors

DTYPE = "float32"


def logits_from_file(tensors, config, ids, progress=None):
    """Read ids (B, T) from the beginning of a text: logits (B, T, V), NumPy float32, computed in float32.

    tensors: official `Tensors`, read as they are needed. `progress(done, total)` follows each block. The blocks are
    those of `Backbone`, so this is its forward pass.
    """
    rules = filled(config.rules())
    ids = np.asarray(ids, "int32")
    state = RWKVState.zeros(config, len(ids))
    x = _norm(_chosen_rows(tensors.entry("emb.weight"), ids), "ln0", rules, tensors, config)
    side = side_values(ops.convert_to_tensor(ids))
    for i in range(config.num_hidden_layers):
        block = new_block(config, i, DTYPE, blank=True)
        block.build(x.shape)
        _fill(block, f"blocks/{i}/", rules, tensors)
        now = keras.tree.map_structure(ops.convert_to_tensor, layer_state(state.wkv, state.shift, i))
        x, _, side = block(x, now, side)
        if progress is not None:
            progress(i + 1, config.num_hidden_layers)
    return _head(ops.convert_to_numpy(_norm(x, "ln_out", rules, tensors, config)), tensors.entry("head.weight"))


def _fill(layer, prefix, rules, tensors):
    """Fill the variables of one layer from the file. prefix: of their attribute paths."""
    own = [rule for rule in rules if rule.path.startswith(prefix)]
    needed = Tensors({name: tensors.entry(name) for rule in own for name in rule.names})
    assign(own, needed, {rule.path: variable_at(layer, rule.path.removeprefix(prefix)) for rule in own})


def _norm(x, name, rules, tensors, config):
    """(B, T, D) through the layer normalisation with this name."""
    layer = keras.layers.LayerNormalization(epsilon=config.layer_norm_epsilon, dtype=DTYPE)
    layer.build(x.shape)
    _fill(layer, f"{name}/", rules, tensors)
    return layer(x)


def _chosen_rows(entry, ids):
    """The rows of a matrix for ids (B, T), float32, found piece by piece."""
    found = np.zeros((*ids.shape, entry.shape[1]), DTYPE)
    for start, rows in entry.pieces():
        here = (ids >= start) & (ids < start + len(rows))
        found[here] = rows[ids[here] - start]
    return found


def _head(hidden, entry):
    """(B, T, D) times a matrix [V, D] -> (B, T, V), piece by piece."""
    logits = np.empty((*hidden.shape[:-1], entry.shape[0]), DTYPE)
    for start, rows in entry.pieces():
        logits[..., start : start + len(rows)] = hidden @ rows.astype(DTYPE).T
    return logits
