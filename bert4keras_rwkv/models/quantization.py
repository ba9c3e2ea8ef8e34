"""Which matrices of a model are stored in fewer bytes, and how."""

from dataclasses import dataclass

from bert4keras_rwkv.layers.low_rank import LowRank
from bert4keras_rwkv.ops.matmul import Scheme
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import filled

SCHEMES = {"bfloat16": Scheme(16), "int8": Scheme(8), "int4": Scheme(4)}


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a model are stored; vectors, low-rank matrices and the embedding stay as they are.

    blocks: the `Scheme` of the projections of all blocks. head: that of the head; None: it stays as it is. skip: parts
    of paths, such as 'blocks/0/' or 'value'; a matrix that one of them names stays as it is.
    """

    blocks: Scheme
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

    def scheme(self, path):
        """The `Scheme` of the projection at a path, 'head' or 'blocks/3/time_mix/key'; None: it stays as it is."""
        parts = f"/{path}/"
        if any(f"/{skipped.strip('/')}/" in parts for skipped in self.skip):
            return None
        return self.head if path == "head" else self.blocks

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
    paths = [rule.path.removesuffix("/kernel") for rule in filled(backbone.config.rules()) if "kernel" in rule.path]
    owners = {path: backbone.variable_at(path.rpartition("/")[0]) if "/" in path else backbone for path in paths}
    return {path: backbone.variable_at(path) for path, owner in owners.items() if not isinstance(owner, LowRank)}
