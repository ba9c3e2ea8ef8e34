"""Which matrices of a model are stored in fewer bytes, and how."""

from dataclasses import dataclass

from bert4keras_rwkv.ops.matmul import Scheme
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import filled

SCHEMES = {"bfloat16": Scheme(16), "int8": Scheme(8), "int4": Scheme(4)}


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a model are stored; vectors, low-rank matrices and the embedding stay as they are.

    blocks: the `Scheme` of the projections of all blocks, or a tuple, of those of each, None: they stay as they are.
    head: that of the head, or None. skip: parts of paths, such as 'blocks/0/' or 'value'; a matrix that one of them
    names stays as it is.
    """

    blocks: Scheme | tuple[Scheme | None, ...]
    head: Scheme | None
    skip: tuple[str, ...] = ()

    @classmethod
    def of(cls, given):
        """A `Quantization` from one, or from 'bfloat16', 'int8' or 'int4'; None from None."""
        if given is None or isinstance(given, cls):
            return given
        if not isinstance(given, str) or given not in SCHEMES:
            known = ", ".join(map(repr, SCHEMES))
            raise ValueError(f"`quantization` is {known}, a `Quantization`, or None. Received: {shown(given)}.")
        return cls(SCHEMES[given], SCHEMES["int8" if given == "int4" else given])

    @classmethod
    def of_places(cls, places):
        """That of a network whose blocks and head are stored as their `strategy.Place` says; None: in their dtypes."""
        *blocks, head = (cls.of(place.stored) for place in places)
        if not any((*blocks, head)):
            return None
        return cls(tuple(one and one.blocks for one in blocks), head and head.head)

    def scheme(self, path):
        """The `Scheme` of the projection at a path, 'head' or 'blocks/3/time_mix/key'; None: it stays as it is."""
        parts = f"/{path}/"
        if any(f"/{skipped.strip('/')}/" in parts for skipped in self.skip):
            return None
        if path == "head":
            return self.head
        return self.blocks[int(path.split("/")[1])] if isinstance(self.blocks, tuple) else self.blocks

    def pack(self, backbone):
        """Pack the projections of a backbone; before it is built they will be packed when it is. All or nothing."""
        chosen = {path: scheme for path in projections(backbone) if (scheme := self.scheme(path)) is not None}
        layers = {path: layer for path, layer in projections(backbone).items() if path in chosen}
        for layer in layers.values():
            layer.check_packing()
        for path, layer in layers.items():
            layer.pack_as(chosen[path])


def projections(backbone):
    """Path -> layer of the matrices of a backbone that may be packed."""
    paths = (rule.path for rule in filled(backbone.config.rules()) if is_projection(rule.path))
    return {path.removesuffix("/kernel"): backbone.variable_at(path.removesuffix("/kernel")) for path in paths}


def is_projection(path):
    """Whether the variable at an attribute path is a matrix that may be packed: the head's, or that of a mixer itself,
    'blocks/3/time_mix/key/kernel', not of low rank.
    """
    *owners, name = path.split("/")
    return name == "kernel" and len(owners) in (1, 4)
