"""bert4keras3's modules, as far as programs for its RWKV use them: `bert4keras3` in an import line becomes
`bert4keras_rwkv.bert4keras3`, and nothing else changes.

All names are thin: what they do lies in the rest of the package. docs/bert4keras3.md says what differs and why. The
modules are loaded when first used; importing this loads no backend.
"""

import importlib

MODULES = ("Models", "backend", "layers", "models", "snippets", "tokenizers")
__all__ = [*MODULES, "ops"]


def __getattr__(name):
    if name == "ops":
        return importlib.import_module("keras.ops")
    if name not in MODULES:
        raise AttributeError(f"bert4keras_rwkv.bert4keras3 has no '{name}'. It has: {', '.join(__all__)}.")
    return importlib.import_module(f"{__name__}.{name}")
