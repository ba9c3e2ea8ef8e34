"""Public names of a package whose modules are loaded when a name of theirs is first used."""

import importlib

from bert4keras_rwkv.keras_loader import all_kept


def public_names(package, modules):
    """The `__getattr__`, `__dir__` and `__all__` of a package.

    modules: public name -> the module it lies in, relative to the package: '.sampling', '..data.records'. None of them
    is called as the name is: the module would take its place.
    """

    def getattribute(name):
        if name not in modules:
            raise AttributeError(f"{package} has no '{name}'. It has: {', '.join(modules)}.")
        with all_kept():
            return getattr(importlib.import_module(modules[name], package), name)

    return getattribute, lambda: sorted(["__doc__", "__name__", "__path__", "__version__", *modules]), [*modules]
