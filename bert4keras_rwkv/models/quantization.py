"""Which matrices of a model are stored in fewer bytes, and how: as one asks for, or as a file has them."""

from dataclasses import dataclass, replace

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.halves import Halvable
from bert4keras_rwkv.layers.projection import kernel_variable, lora_of, quantised_as, scheme_of
from bert4keras_rwkv.models.calibration import moments_of_inputs
from bert4keras_rwkv.ops.matmul import Scheme
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.loading import export
from bert4keras_rwkv.weights.packed import (
    Described,
    halves_of,
    is_low_rank,
    packed_tensor,
    schemes_of,
    title,
)
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, dtype_named

SCHEMES = {"bfloat16": Scheme(16), "int8": Scheme(8), "int4": Scheme(4)}

KEEP, AUTO = "keep", "auto"
EMBEDDING, LOW_RANK = "embed", "low_rank"  # in `skip`


class _Packing:
    """What has `scheme(path)`, `embedding` and `low_rank`."""

    skip = ()

    def check(self, config):
        """Raise a ValueError unless it is for a model of this configuration."""

    def pack(self, backbone):
        """Pack the matrices of a backbone; before it is built they will be packed when it is. All or nothing."""
        for layer, scheme in self._chosen(backbone).values():
            layer.pack_as(scheme)

    def pack_calibrated(self, backbone, ids, compensate=False):
        """`pack`, the errors weighted by what the projections multiply while the backbone reads `ids` (N,).

        compensate: columns of a matrix make up for the errors of those before them, see `packing.compensation`.
        """
        chosen = self._chosen(backbone)
        layers = {path: layer for path, (layer, _) in chosen.items() if path not in halvable(backbone)}
        arrays = {
            path: layers[path].packed_as(chosen[path][1], moments)
            for path, moments in moments_of_inputs(backbone, layers, ids, whole=compensate)
        }
        for path, (layer, scheme) in chosen.items():
            layer.pack_as(scheme, arrays.get(path))

    def _chosen(self, backbone):
        """Path -> (layer, its `Scheme`) of what is packed; it can be, or this is a ValueError."""
        self.check(backbone.config)
        layers = projections(backbone)
        chosen = {path: (layers[path], scheme) for path in layers if (scheme := self.scheme(path)) is not None}
        low_ranks = halvable(backbone)
        for layers, asked in (({EMBEDDING: low_ranks.pop(EMBEDDING)}, self.embedding), (low_ranks, self.low_rank)):
            if asked is not None or all(layer.built and layer.is_exact for layer in layers.values()):
                chosen |= {
                    path: (layer, SCHEMES["bfloat16"]) for path, layer in layers.items() if self._halves(path, layer)
                }
        for layer, _ in chosen.values():
            layer.check_packing()
        return chosen

    def _halves(self, path, layer):
        """Whether an embedding or a low-rank matrix would be stored in bfloat16."""
        return layer.is_wide and not self._skips(path if path == EMBEDDING else f"{LOW_RANK}/{path}")

    def _skips(self, path):
        return any(f"/{skipped.strip('/')}/" in f"/{path}/" for skipped in self.skip)


@dataclass(frozen=True)
class Quantization(_Packing):
    """How the matrices of a model are stored; vectors stay as they are.

    blocks: the `Scheme` of the projections of all blocks, or a tuple, of those of each, None: they stay as they are.
    head: that of the head, or None. skip: parts of paths, such as 'blocks/0/' or 'value'; a matrix that one of them
    names stays as it is. embedding, low_rank (matrices of low rank): 'bfloat16', or None: in bfloat16 where a file has
    them so, or that changes none of their numbers, else as they are. In bfloat16 they do not train; 'embed' or
    'low_rank' in `skip` leaves them in the model's dtype.
    """

    blocks: Scheme | tuple[Scheme | None, ...]
    head: Scheme | None
    skip: tuple[str, ...] = ()
    embedding: str | None = None
    low_rank: str | None = None

    def __post_init__(self):
        blocks = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,)
        for given in (*blocks, self.head):
            if not isinstance(given, Scheme | None):
                raise ValueError(f"`blocks` and `head` are a `Scheme`, a tuple of them, or None. Received: {given!r}.")
        if not isinstance(self.skip, tuple) or not all(isinstance(one, str) for one in self.skip):
            raise ValueError(f"`skip` is a tuple of str, such as ('embed',). Received: {shown(self.skip)}.")
        for name in ("embedding", "low_rank"):
            if getattr(self, name) not in (None, "bfloat16"):
                raise ValueError(f"`{name}` is 'bfloat16' or None. Received: {shown(getattr(self, name))}.")

    def check(self, config):
        """Raise a ValueError unless it is for a model of this configuration."""
        if isinstance(self.blocks, tuple) and len(self.blocks) != config.num_hidden_layers:
            raise ValueError(f"`blocks` has {len(self.blocks)} schemes, for {config.num_hidden_layers} blocks.")
        paths = [f"{LOW_RANK}/{rule.path}" if is_low_rank(rule.path) else rule.path for rule in filled(config.rules())]
        for skipped in self.skip:
            if not any(f"/{skipped.strip('/')}/" in f"/{path}/" for path in paths):
                raise ValueError(f"`skip` names part of a path, such as {paths[-1]!r}. None has {shown(skipped)}.")

    @classmethod
    def of(cls, given):
        """A `Quantization` from one, or from 'bfloat16', 'int8' or 'int4'; None from None."""
        if given is None or isinstance(given, cls):
            return given
        if not isinstance(given, str) or given not in SCHEMES:
            known = ", ".join(map(repr, SCHEMES))
            raise ValueError(
                f"`quantization` is {known}, {KEEP!r} or {AUTO!r} of a file, a `Quantization`, or None. Received: "
                f"{shown(given)}."
            )
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
        if self._skips(path):
            return None
        if path == "head":
            return self.head
        return self.blocks[int(path.split("/")[1])] if isinstance(self.blocks, tuple) else self.blocks


@dataclass(frozen=True)
class Kept(_Packing):
    """As a file has its matrices. schemes: path of a projection -> `Scheme`; the others stay as they are. embedding,
    low_rank: as of `Quantization`.
    """

    schemes: dict
    embedding: str | None = None
    low_rank: str | None = None

    def scheme(self, path):
        """The `Scheme` of the projection at a path; None: it stays as it is."""
        return self.schemes.get(path)


def asked(given):
    """What `build_transformer_model` is told, checked: 'keep', 'auto', a `Quantization` or None."""
    return given if isinstance(given, str) and given in (KEEP, AUTO) else Quantization.of(given)


def of_file(given, rules, tensors, embedding):
    """How a model of these tensors is stored, None for plainly. given: what `asked` gives. embedding: the dtype in
    which that comes, for it may have been cut.

    Raises:
        ValueError: the tensors are packed, and otherwise than is asked for.
    """
    held = {path: described.scheme for path, described in schemes_of(rules, tensors).items()}
    halves = {
        "embedding": "bfloat16" if str(embedding) == "bfloat16" else None,
        "low_rank": "bfloat16" if any(map(is_low_rank, halves_of(rules, tensors).values())) else None,
    }
    if given is None:
        return Kept(held, **halves) if held else None
    if given == KEEP:
        return Kept({**_bfloat16(rules, tensors), **held}, **halves)
    other = next((path for path, scheme in held.items() if given.scheme(path) != scheme), None)
    if other is not None:
        raise ValueError(
            f"The file is quantised already: '{other}' is {title(held[other])}. Quantising twice rounds twice. Leave "
            "`quantization` out, or take the file it was made of."
        )
    return replace(given, **{name: getattr(given, name) or found for name, found in halves.items()})


def _bfloat16(rules, tensors):
    """The matrices that a file has in bfloat16, as they lie there. A scheme of no projection is not asked for."""
    names = {rule.path.removesuffix("/kernel"): rule.names[0] for rule in filled(rules) if "kernel" in rule.path}
    dtypes = tensors.dtypes
    return {path: SCHEMES["bfloat16"] for path, name in names.items() if str(dtypes.get(name)) == "bfloat16"}


def weights_of(backbone):
    """The weights of a backbone as lazy `Tensors` under official names, LoRA added; packed ones are packed there, too.

    Raises:
        ValueError: Keras quantised a layer, or a packed one has a LoRA that adds something.
    """
    rules, packed = backbone.config.rules(), {}
    for layer in backbone._flatten_layers():
        if quantised_as(layer) is not None and scheme_of(layer) is None:
            raise ValueError(
                f"The weights of '{layer.path}', which Keras quantised, are rounded: take those from before."
            )
    for path, layer in projections(backbone).items():
        if scheme_of(layer) is not None:
            if lora_of(layer) is not None and np.any(ops.convert_to_numpy(lora_of(layer).b)):
                raise ValueError(
                    f"'{path}' is quantised, and most of its LoRA would be rounded away in it. Save the LoRA with "
                    "`save_adapter`: it goes beside the file that the model came from."
                )
            packed[path] = _tensor(path, layer)
    names = {rule.path.removesuffix("/kernel"): rule.names[0] for rule in filled(rules)}
    entries = export(rules, backbone.value_at).entries()
    return Tensors(entries | {names[path]: tensor for path, tensor in packed.items()})


def _tensor(path, layer):
    """The kernel of a packed layer, as it is, as a `Tensor` (outputs, inputs)."""
    kernel = kernel_variable(layer)
    inputs, outputs = kernel.shape
    parts = {name: _part(variable) for name, variable in kernel.parts().items()}
    return packed_tensor(path, outputs, Described(kernel.scheme, inputs), parts)


def _part(variable):
    """A variable, not read yet."""
    shape, dtype = tuple(variable.shape), dtype_named(variable.dtype)

    def read():
        return np.asarray(ops.convert_to_numpy(variable.value), dtype)

    return Tensor(shape, dtype, read, lambda start, stop: read()[start:stop])


def refuse_packed(backbone):
    """Raise a ValueError if a matrix is packed: what is merged into it would be rounded once more."""
    for path, layer in projections(backbone).items():
        if scheme_of(layer) is not None:
            raise ValueError(
                f"'{path}' is {quantised_as(layer)}: merge into the model that it was made of, and quantise that then."
            )


def projections(backbone):
    """Path -> layer of the matrices of a backbone that may be packed."""
    paths = (rule.path for rule in filled(backbone.config.rules()) if is_projection(rule.path))
    return {path.removesuffix("/kernel"): backbone.variable_at(path.removesuffix("/kernel")) for path in paths}


def halvable(backbone):
    """Path -> layer of what may be stored in bfloat16 without being packed: the embedding and low-rank matrices."""
    paths = (rule.path.rpartition("/")[0] for rule in filled(backbone.config.rules()))
    layers = {path: backbone.variable_at(path) for path in dict.fromkeys(paths)}
    return {path: layer for path, layer in layers.items() if isinstance(layer, Halvable)}


def is_projection(path):
    """Whether the variable at an attribute path is a matrix that may be packed: the head's, or that of a mixer itself,
    'blocks/3/time_mix/key/kernel', not of low rank.
    """
    *owners, name = path.split("/")
    return name == "kernel" and len(owners) in (1, 4)
