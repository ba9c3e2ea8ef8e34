"""The versions of RWKV that there are: one module each, `rwkv*.py`, whose `VERSION` says what it is.

A new version is a file here, a file of the same name in `layers`, and where its recurrence is new a file in `ops`.
"""

import functools
import pkgutil
from importlib import import_module

from bert4keras_rwkv.untrusted import shown

# Parts of names that only relatives of a known version have. The first hit names the relative.
RELATIVES = (
    ("rosa", "RWKV-8 with ROSA"),
    (".qkv.", "RWKV-7b (DeepEmbed with DEA attention)"),
    (".s_emb", "RWKV-7a (DeepEmbed)"),
    (".gate_w1", "RWKV-6 x060a (low-rank gate)"),
    (".time_maa_rkvw_w1", "RWKV-6 x060b or x060c (without a gate)"),
    (".tiny_", "RWKV-4a or 4b (with a tiny attention)"),
    ("head_q.", "an RWKV-4 with a head_qk"),
    ("head_k.", "an RWKV-4 with a head_qk"),
    (".ffnPre.", "an RWKV with a channel mix before its first block"),
    (".pos_emb_", "an RWKV with position embeddings"),
    (".ffn.aa.", "an RWKV with a MishGLU channel mix"),
)


def versions():
    """Name -> `Version`, the newest first: so files are asked whose they are."""
    return _found(tuple(__path__))


@functools.cache
def _found(folders):
    names = (module.name for module in pkgutil.iter_modules(folders) if module.name.startswith("rwkv"))
    return {name: import_module(f"{__name__}.{name}").VERSION for name in sorted(names, reverse=True)}


def version_named(name):
    """The `Version` of this name, else a `ValueError` that says which there are."""
    found = versions().get(name) if isinstance(name, str) else None  # a JSON file may say anything, a dict too
    if found is None:
        known = ", ".join(map(repr, sorted(versions())))
        raise ValueError(f"The model {shown(name)} is not known. Known: {known}.")
    return found


def version_of(shapes):
    """The `Version` that a mapping official name -> shape holds the weights of, and its number, '5.2'.

    Raises `ValueError` for weights of a relative, for weights already converted by the `rwkv` package, and for names
    that are no RWKV model's.
    """
    if "_strategy" in shapes:
        raise ValueError(
            "This file was converted by the `rwkv` package for one strategy (it has a '_strategy' entry): its "
            "embedding is already normalised and its matrices are transposed or quantised, which cannot be undone. "
            "Load the original file."
        )
    for part, relative in RELATIVES:
        found = next((name for name in shapes if part in name), None)
        if found:
            raise ValueError(f"These are weights of {relative}, which is not supported: the file has '{found}'.")
    missing = next(
        (name for name in ("emb.weight", "blocks.0.ffn.key.weight", "head.weight") if name not in shapes), None
    )
    if missing:
        some = ", ".join(f"'{name}'" for name in sorted(shapes)[:3]) or "nothing"
        raise ValueError(f"These are not the weights of an RWKV model: '{missing}' is missing. Found: {some}, ...")
    numbers = ((version, version.number_of(shapes)) for version in versions().values())
    return next((version, number) for version, number in numbers if number is not None)
