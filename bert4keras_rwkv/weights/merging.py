"""Adapters merged into a model: lazily into its tensors, or into a model in memory. What each kind does: `adapters`."""

import numpy as np

from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.adapters import ALPHA, TITLES, check_alpha
from bert4keras_rwkv.weights.loading import assign, export, refuse
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, WeightsError


def merge_into(rules, get_variable, adapter, alpha=ALPHA, base=None):
    """`merged` for a model in memory, whose variables `get_variable(path)` gives: all or nothing, and nothing else is
    touched.
    """
    tensors = merged(export(rules, get_variable), adapter, alpha, base, unused_names(rules))
    changed = [rule for rule in filled(rules) if adapter.changes & set(rule.names)]
    entries = {name: tensors.entry(name) for rule in changed for name in rule.names}
    assign(changed, Tensors(entries), {rule.path: get_variable(rule.path) for rule in changed})


def unused_names(rules):
    """The names that a file may hold and the model does not use."""
    return {name for rule in rules if rule.path is None for name in rule.names}


def merged(tensors, adapter, alpha=ALPHA, base=None, unused=()):
    """Official `Tensors` with an adapter merged into them: each is computed in float32 when it is read, and has the
    dtype it had.

    alpha: LoRA's; the files do not say it. base: the `Adapter` of a PiSSA's initial factors; alpha has no meaning then.
    unused: names that a file may hold and the model does not use. Whatever does not fit, by names and shapes, is told
    in one `WeightsError` before anything is read.
    """
    check_alpha(alpha)
    _check_kinds(adapter, base)
    copies = {name: entry for name, entry in adapter.copies.items() if name not in unused}
    first = {} if base is None else base.parts
    refuse(_misfits(tensors.shapes, adapter, copies, first))
    entries = {name: tensors.entry(name) for name in tensors}
    for name, copy in copies.items():
        entries[name] = copy.changed(_cast_to(entries[name].dtype), entries[name].dtype)
    for name, parts in adapter.parts.items():
        scale = alpha / parts[0].shape[0] if base is None else 1.0
        weight = entries[f"{name}.weight"]
        entries[f"{name}.weight"] = _merged(weight, adapter.kind, parts, scale, first.get(name))
    return Tensors(entries, tensors.metadata, tensors.close)


def _merged(weight, kind, parts, scale, first):
    """The `Tensor` of a matrix with its adapter."""
    wide = np.promote_types(weight.dtype, np.float32)

    def read():
        result = np.array(weight.read(), wide, order="C")
        CHANGES[kind](result, *(part.read().astype(wide) for part in parts), scale)
        if first is not None:
            _add_lora(result, *(part.read().astype(wide) for part in first), -1.0)
        return result.astype(weight.dtype)

    return Tensor(weight.shape, weight.dtype, read)


def _add_lora(W, A, B, scale):
    """W += scale * B A, in place. A [r, in], B [out, r]."""
    product = B @ A
    product *= scale
    W += product


def _add_bone(W, D, scale):
    """W[o, j] += D[j mod r, o], in place. D [r, out]; r need not divide the columns of W."""
    for start in range(0, W.shape[1], len(D)):
        part = W[:, start : start + len(D)]
        part += D.T[:, : part.shape[1]]


def _add_bat(W, D, scale):
    """W_ab += W_ab D_b + D_b for the blocks [r, r] of W, in place. D [in / r, r, r]."""
    r = D.shape[1]
    blocks = W.reshape(-1, r, len(D), r).swapaxes(1, 2)  # a view: [out / r, in / r, r, r]
    blocks += blocks @ D + D


CHANGES = {"lora": _add_lora, "bone": _add_bone, "bat": _add_bat}  # only LoRA has a scale


def _check_kinds(adapter, base):
    """Raise if these two files do not go together."""
    if adapter.kind == "initial":
        raise WeightsError(
            f"'{adapter.path}' holds the factors that a PiSSA began with. Give the trained file, and this one as "
            "`base`."
        )
    if base is None:
        return
    if adapter.kind != "lora" or base.kind != "initial":
        raise WeightsError(
            "`base` is for a PiSSA: the file of its initial factors, 'P.init_lora_A' and 'P.init_lora_B'. Received: "
            f"'{base.path}' with {TITLES[base.kind]}, for '{adapter.path}' with {TITLES[adapter.kind]}."
        )


def _misfits(shapes, adapter, copies, first):
    """Every reason why the adapter does not fit these shapes, as lines."""
    lines = [f"the model has no '{name}'" for name in copies if name not in shapes]
    lines += [
        f"'{name}' is {shapes[name]}, the file has {entry.shape}"
        for name, entry in copies.items()
        if name in shapes and entry.shape != shapes[name]
    ]
    for name, parts in adapter.parts.items():
        shape = shapes.get(f"{name}.weight")
        if shape is None:
            lines.append(f"the model has no '{name}.weight'")
        elif len(shape) != 2 or not _fits(adapter.kind, *shape, [part.shape for part in parts]):
            sizes = " and ".join(str(part.shape) for part in parts)
            lines.append(f"'{name}.weight' is {shape}, the file has {TITLES[adapter.kind]} {sizes}")
    if first:
        for name in sorted(set(first) ^ set(adapter.parts)):
            lines.append(f"'{name}' is only in one of the two files")
        lines += [
            f"'{name}' has ranks of {adapter.parts[name][0].shape} in one file and {parts[0].shape} in the other"
            for name, parts in first.items()
            if name in adapter.parts and [p.shape for p in parts] != [p.shape for p in adapter.parts[name]]
        ]
    return lines


def _fits(kind, out, inside, shapes):
    """Whether parts of these shapes belong to a matrix [out, inside]."""
    if 0 in shapes[0]:
        return False
    if kind == "lora":
        rank = shapes[0][0]
        return shapes == [(rank, inside), (out, rank)]
    if kind == "bone":
        return shapes[0][1] == out
    blocks, rank, other = shapes[0]
    return rank == other and blocks * rank == inside and out % rank == 0


def _cast_to(dtype):
    return lambda array: array.astype(dtype)
