"""Tables of weights: which tensors of a file, by their official names, become which variable of a model, and how.

`Rule("blocks.0.att.key.weight", "blocks/0/time_mix/key/kernel", TRANSPOSE)`. Transforms are shapes and orders: no value
changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A pair of inverse functions. `load(*file arrays) -> variable`; `save(variable) -> file array`, or a tuple of
    them.
    """

    load: Callable
    save: Callable


def stacked(*parts):
    """Vectors of a file, [1, 1, C] or (C,) each, as the rows of one array (number of them, C)."""
    return np.stack([part.reshape(-1) for part in parts])


def split(array):
    """The rows of (n, C) as a file has them: n arrays [1, 1, C]."""
    return tuple(row.reshape(1, 1, -1) for row in array)


def columns(parts):
    """A `Transform` of [C, parts * D], the factors of so many low-rank products side by side, to (parts, C, D)."""
    return Transform(
        load=lambda array: array.reshape(array.shape[0], parts, -1).swapaxes(0, 1),
        save=lambda array: array.swapaxes(0, 1).reshape(array.shape[1], -1),
    )


IDENTITY = Transform(load=lambda array: array, save=lambda array: array)
TRANSPOSE = Transform(load=lambda array: array.T, save=lambda array: array.T)  # Linear [out, in] to a kernel (in, out)
VECTOR = Transform(
    load=lambda array: array.reshape(-1), save=lambda array: array.reshape(1, 1, -1)
)  # [1, 1, C] to (C,)
STACK = Transform(load=stacked, save=split)


@dataclass(frozen=True)
class Rule:
    """One variable: the official name (or names) it comes from, its attribute path, and how the one becomes the other.

    Several names, a tuple, are combined into the one variable by `transform.load(*arrays)`. A path of None: files may
    hold this tensor, and the model does not use it.
    """

    source: str | tuple
    path: str | None
    transform: Transform = field(default=IDENTITY)

    @property
    def names(self):
        """The official names, always a tuple."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)


def filled(rules):
    """The rules that fill a variable."""
    return [rule for rule in rules if rule.path is not None]


def model_rules(config, mixers):
    """The whole weight table of a model, in the order of released files.

    mixers: a function of the block's number that gives the rules of its two mixers, with names below `blocks.0.` and
    paths below `blocks/0/`.
    """
    rules = [Rule("emb.weight", "embed/embeddings")]
    for i in range(config.num_hidden_layers):
        for norm in ("ln1", "ln2"):
            rules += _norm(f"blocks.{i}.{norm}", f"blocks/{i}/{norm}")
        if i == 0:
            rules += _norm("blocks.0.ln0", "ln0")
        rules += [_inside(i, rule) for rule in mixers(i)]
    return [*rules, *_norm("ln_out", "ln_out"), Rule("head.weight", "head/kernel", TRANSPOSE)]


def _inside(i, rule):
    """The rule of a mixer as that of a model."""
    names = tuple(f"blocks.{i}.{name}" for name in rule.names)
    return Rule(names, None if rule.path is None else f"blocks/{i}/{rule.path}", rule.transform)


def _norm(source, path):
    return [Rule(f"{source}.weight", f"{path}/gamma"), Rule(f"{source}.bias", f"{path}/beta")]
