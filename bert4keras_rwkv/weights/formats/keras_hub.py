"""The `.weights.h5` of Keras Hub's RWKV-7, backbone or language model, as lazy tensors under official names.

Its groups are named by class and number; the variables of a time mix are numbered in the order in which it makes them.
"""

import re

from bert4keras_rwkv.versions.table import IDENTITY, TRANSPOSE, VECTOR, Rule
from bert4keras_rwkv.weights.formats.hdf5 import LAYERS as ROOT
from bert4keras_rwkv.weights.formats.hdf5 import MAGIC, holds, weights_only
from bert4keras_rwkv.weights.formats.keras_h5 import INDEX, stored
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.loading import export
from bert4keras_rwkv.weights.shards import every_problem, weight_map
from bert4keras_rwkv.weights.tensors import Tensors

BLOCK = "rwkv7__block"
# The variables of a time mix by number; the first block has no value residual.
NUMBERED = (
    *(f"x_{letter}" for letter in "rwkvag"),
    *(f"{letter}{number}" for letter in "wav" for number in (0, 1, 2)),
    *("g1", "g2", "k_k", "k_a", "r_k"),
)
RESIDUAL = ("v0", "v1", "v2")
MATRICES = re.compile(r"[wavg][12]|r_k")
DENSES = {"receptance": "receptance", "key": "key", "value": "value", "output": "output_layer"}


def is_keras_hub(path, start):
    """Whether it is an HDF5 file, or an index of several, with the groups of an RWKV-7 of Keras Hub."""
    if path.name.endswith(INDEX) and start.lstrip().startswith(b"{"):
        return any(group.strip("/").startswith(f"{ROOT}{BLOCK}/") for group in weight_map(path, several=True))
    return start.startswith(MAGIC) and holds(path, f"{ROOT}{BLOCK}/att")


def open_keras_hub(path, config=None):
    """The weights as lazy `Tensors`. Groups that are missing or too many are one `WeightsError`."""
    everything, close = stored(path)
    try:
        found = weights_only(everything)
        rules = keras_hub_rules(len({name.split("/")[1] for name in found if name.startswith(f"{ROOT}{BLOCK}")}))
        wanted = {rule.path for rule in rules}
        problems = [f"nothing at '{name}'" for name in sorted(wanted - set(found))]
        every_problem(path, problems + [f"no rule for '{name}'" for name in sorted(set(found) - wanted)])
        return Tensors(export(rules, found.__getitem__).entries(), {"format": "keras_hub"}, close)
    except BaseException:
        close()
        raise


def keras_hub_rules(layers):
    """The table of a model in the order of a released file; its paths are those of data sets."""
    rules = [Rule("emb.weight", f"{ROOT}embedding/vars/0")]
    for i in range(layers):
        group = f"{ROOT}{BLOCK}" + (f"_{i}" if i else "")
        for norm in ("ln1", "ln2") if i else ("ln1", "ln2", "ln0"):
            rules += _norm(f"blocks.{i}.{norm}", f"{group}/{norm}")
        rules += _mixers(f"blocks.{i}", group, [name for name in NUMBERED if i or name not in RESIDUAL])
    return [*rules, *_norm("ln_out", f"{ROOT}layer_normalization"), _dense("head", f"{ROOT}dense")]


def _mixers(official, group, names):
    """Time mix and channel mix of one block."""
    places = {name: f"{group}/att/vars/{number}" for number, name in enumerate(names)}
    order = [f"x_{letter}" for letter in "rwkvag"] + ["w0", "r_k", "w1", "w2", "a1", "a2", "a0", "g1", "g2"]
    order += [name for name in ("v2", "v1", "v0") if name in places] + ["k_k", "k_a"]
    return [
        *(Rule(f"{official}.att.{n}", places[n], IDENTITY if MATRICES.fullmatch(n) else VECTOR) for n in order),
        *(_dense(f"{official}.att.{name}", f"{group}/att/{theirs}") for name, theirs in DENSES.items()),
        *_norm(f"{official}.att.ln_x", f"{group}/att/ln_x"),
        Rule(f"{official}.ffn.x_k", f"{group}/ffn/vars/0", VECTOR),
        *(_dense(f"{official}.ffn.{name}", f"{group}/ffn/{name}") for name in ("key", "value")),
    ]


def _dense(official, group):
    return Rule(f"{official}.weight", f"{group}/vars/0", TRANSPOSE)


def _norm(official, group):
    return [Rule(f"{official}.{part}", f"{group}/vars/{number}") for number, part in enumerate(("weight", "bias"))]


FORMAT = Format("keras_hub", "Keras Hub's `.weights.h5`", ("7",), is_keras_hub, open_keras_hub, suffix=".weights.h5")
