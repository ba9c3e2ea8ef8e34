"""LoRA on Keras' own `enable_lora`, and adapter files: what was tuned, apart from the weights it was tuned on.

W + alpha / rank * A B for a kernel W (inputs, outputs), A (inputs, rank), B (rank, outputs); arXiv 2106.09685.
"""

import json
import math
import os
from dataclasses import dataclass, field
from numbers import Real

import numpy as np

from bert4keras_rwkv.keras_loader import ops
from bert4keras_rwkv.layers.projection import (
    fold_lora,
    is_halved,
    kernel_shape,
    lora_of,
    quantisation_of,
    quantise,
    quantised_as,
)
from bert4keras_rwkv.models.state_tuning import enable_state_tuning, freeze, set_tuned_state, tuned_state
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import filled
from bert4keras_rwkv.weights.adapters import ALPHA, OWN, WHOLE, check_alpha, own_adapter, read_adapter, save_lora
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors, write_safetensors
from bert4keras_rwkv.weights.tensors import WeightsError

LORA_FILES = (".pth", ".st")  # RWKV-PEFT's and web-rwkv's; everything else is our own


def enable_lora(backbone, rank, alpha=None, targets=None):
    """Give projections a LoRA each and freeze all other weights, tuned states excepted.

    rank: of A and B. alpha: None for rank, which scales A B by 1. targets: names of projections: 'receptance', 'key',
    'value', 'gate', 'output', low-rank layers such as 'decay_low_rank', and 'head'; None: all in the blocks.
    Raises ValueError for unknown names, and if LoRA is on already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`rank` is a positive whole number. Received: rank={rank!r}.")
    known = rank if alpha is None else alpha
    if isinstance(known, bool) or not isinstance(known, (int, float)) or not 0 < known < math.inf:
        raise ValueError(f"`alpha` is a positive number, or None for the rank. Received: alpha={alpha!r}.")
    if adapted(backbone):
        raise ValueError("LoRA is on already. `save_adapter` writes it, `merge_adapter` adds it to the weights.")
    for layer in _chosen(_kernels(backbone), targets).values():
        layer.enable_lora(rank, lora_alpha=known)
    freeze(backbone)
    backbone.changed()


def adapted(backbone):
    """Path -> layer of every projection that has a LoRA: 'blocks/0/time_mix/key'."""
    return {path: layer for path, layer in _kernels(backbone).items() if lora_of(layer)}


def described(backbone):
    """What is tuned, for a config: paths of projections with (rank, alpha) of their LoRA, whether the last inputs are
    tuned with the states (None: no states are), paths of other weights that train, and of layers that Keras quantised
    with how. {} if nothing is.
    """
    layers, states = adapted(backbone), backbone.start_states
    owners = dict.fromkeys(rule.path.rpartition("/")[0] for rule in filled(backbone.config.rules()))
    rounded = {path: layer for path in owners if quantised_as(layer := backbone.variable_at(path))}
    if not layers and not states and not rounded:
        return {}
    loras = {path: lora_of(layer) for path, layer in layers.items()}
    return {
        "lora": {path: [lora.rank, lora.alpha] for path, lora in loras.items()},
        "shift": states[0].shift if states else None,
        "others": list(_others(backbone)),
        "quantised": {path: quantisation_of(layer) for path, layer in rounded.items()},
    }


def prepare(backbone, tuned):
    """Switch on what `described` says."""
    for path, how in tuned.get("quantised", {}).items():  # none in files from before they were described
        quantise(backbone.variable_at(path), *how)
    for path, (rank, alpha) in tuned["lora"].items():
        backbone.variable_at(path).enable_lora(rank, lora_alpha=alpha)
    if tuned["shift"] is not None:
        backbone.tune_states(tuned["shift"])
    if tuned["lora"] or tuned["shift"] is not None:
        freeze(backbone)
    for path in tuned["others"]:
        backbone.variable_at(path).trainable = True


def merge_adapter(backbone, scale=1.0):
    """Add every LoRA, times `scale`, to the weights and start it anew at zero: at scale 1 the model stays as it was."""
    _check_scale(scale)
    layers = adapted(backbone)
    rounded = [path for path, layer in layers.items() if quantised_as(layer)]
    if rounded:
        raise ValueError(
            f"'{rounded[0]}' is quantised, and most of a LoRA would be rounded away in it. Save the adapter, load it "
            "on the model before quantising, and merge it there."
        )
    for layer in layers.values():
        fold_lora(layer, scale)


def save_adapter(backbone, path):
    """Write LoRA weights, the tuned state, and every other weight that trains, to a safetensors file of our own,
    exactly; whole or not at all.

    A path that ends in `.pth` or `.st` gets the LoRA alone, as RWKV-PEFT or web-rwkv have it.
    """
    layers = adapted(backbone)
    if str(path).endswith(LORA_FILES):
        save_lora(path, _pairs(backbone, layers), _alpha(layers))
        return
    tensors = {f"{WHOLE}{name}": ops.convert_to_numpy(variable) for name, variable in _others(backbone).items()}
    for name, layer in layers.items():
        for part in "ab":
            tensors[f"{name}/lora_{part}"] = ops.convert_to_numpy(getattr(lora_of(layer), part))
    if backbone.start_states:
        state = tuned_state(backbone)
        tensors |= {"start/wkv": state.wkv, "start/shift": np.asarray(state.shift, "float32")}
    if not tensors:
        raise ValueError("Nothing is tuned. Call `enable_lora` or `enable_state_tuning` first.")
    shift = bool(backbone.start_states and backbone.start_states[0].shift)
    said = {"config": backbone.config.to_dict(), "shift": shift}
    if layers:
        said |= {"alpha": _alpha(layers), "rank": lora_of(next(iter(layers.values()))).rank}
    write_safetensors(path, tensors, metadata={"format": OWN, "version": "1", "adapter": json.dumps(said)})


def load_adapter(backbone, path, scale=1.0, alpha=ALPHA):
    """Take over an adapter: our own file, or a LoRA of RWKV-PEFT or web-rwkv; or several at once. All or nothing.

    LoRA and state tuning are switched on where the file has them; where they are on already they must fit, but a LoRA
    of zero, as `merge_adapter` leaves it, gives way. scale: multiplies what the LoRA adds. alpha: of a foreign LoRA,
    whose file does not say it.
    path may be a list, scale then one for each: what each LoRA adds, times its scale, is added up, in one LoRA whose
    rank is the sum of theirs; tuned states are averaged with the scales as weights.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    scales = list(scale) if np.ndim(scale) else [scale] * len(paths)
    if not paths or len(scales) != len(paths):
        raise ValueError(
            f"A scale for each of at least one adapter. Received: {len(paths)} files, {len(scales)} scales."
        )
    for one in scales:
        _check_scale(one)
    check_alpha(alpha)
    kernels, files = _kernels(backbone), [_read(backbone, one, alpha) for one in paths]
    for one, file in zip(paths, files, strict=True):
        _refuse(one, backbone, _problems(backbone, kernels, file))
    file = files[0]
    if len(files) > 1:
        file, scale = _together(files, scales, " and ".join(map(str, paths))), 1.0
    else:
        (scale,) = scales
    here = adapted(backbone)
    if (
        here
        and file.pairs
        and (set(here) != set(file.pairs) or {lora_of(one).rank for one in here.values()} != {file.rank})
    ):
        if any(ops.convert_to_numpy(lora_of(layer).b).any() for layer in here.values()):
            _refuse(path, backbone, ["LoRA is on for other projections or another rank; `merge_adapter` makes room"])
        for layer in here.values():
            layer.drop_lora()
        here = {}
    _take_over(backbone, kernels, file, scale, new=bool(file.pairs) and not here)


def _check_scale(scale):
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise ValueError(f"`scale` is a finite number, which multiplies what a LoRA adds. Received: scale={scale!r}.")


@dataclass(frozen=True)
class _File:
    """What an adapter file holds. pairs: path of a projection -> (A, B) as our layers have them. state: RWKVState, with
    shift whether its last inputs were tuned, or None. others: path of a weight -> array.
    """

    pairs: dict
    alpha: float
    state: RWKVState | None = None
    shift: bool = False
    others: dict = field(default_factory=dict)

    @property
    def ranks(self):
        return {a.shape[-1] for a, _ in self.pairs.values()}

    @property
    def rank(self):
        return next(iter(self.ranks), 0)


def _read(backbone, path, alpha):
    """The `_File` at a path."""
    return _foreign(backbone, path, alpha) if str(path).endswith(LORA_FILES) else _own(backbone, path)


def _problems(backbone, kernels, file):
    """What speaks against loading a file, in lines."""
    problems = [f"no projection '{name}'" for name in file.pairs if name not in kernels]
    for name, (a, b) in file.pairs.items():
        shape = () if name not in kernels else kernel_shape(kernels[name])
        if shape and (a.shape[:-1] != shape[:-1] or b.shape[1:] != shape[-1:] or a.shape[-1] != b.shape[0]):
            problems.append(f"'{name}' is {shape}, its LoRA {a.shape} and {b.shape}")
    if len(file.ranks) > 1:
        problems.append(f"its ranks are {sorted(file.ranks)}; they should be one")
    if (
        file.state is not None
        and file.state.shift.any()
        and backbone.start_states
        and not backbone.start_states[0].shift
    ):
        problems.append("its state has last inputs, and state tuning is on without: time_shift_tuning=True")
    wanted = [(1, *shape) for shape in RWKVState.shapes(backbone.config)]
    if file.state is not None and [file.state.wkv.shape, file.state.shift.shape] != wanted:
        problems.append(f"its state is {file.state.wkv.shape} and {file.state.shift.shape}, here {wanted}")
    known = _weights(backbone) if file.others else {}
    for name, array in file.others.items():
        shape = tuple(known[name].shape) if name in known else None
        if shape != array.shape:
            problems.append(f"'{name}' is {array.shape} there, and here {shape or 'quantised or absent'}")
    return problems


def _refuse(path, backbone, problems):
    if problems:
        raise WeightsError(f"'{path}' does not fit this {backbone.config.model}:\n  " + "\n  ".join(problems[:20]))


def _together(files, scales, names):
    """Several `_File`s as one: LoRAs side by side, states averaged."""
    if any(file.others for file in files):
        raise WeightsError(f"Whole weights cannot be added up. One of {names} holds some: load it by itself.")
    pairs, ranked = {}, [(file, scale) for file, scale in zip(files, scales, strict=True) if file.pairs]
    for name in dict.fromkeys(name for file, _ in ranked for name in file.pairs):
        a, b = next(file.pairs[name] for file, _ in ranked if name in file.pairs)
        none = a[..., :0], b[:0]
        sides = [
            _widened(*file.pairs.get(name, none), file.rank, scale * file.alpha / file.rank) for file, scale in ranked
        ]
        pairs[name] = np.concatenate([a for a, _ in sides], -1), np.concatenate([b for _, b in sides], 0)
    states = [(file.state, scale) for file, scale in zip(files, scales, strict=True) if file.state is not None]
    state = RWKVState.average(*zip(*states, strict=True)) if states else None
    return _File(pairs, float(sum(file.rank for file, _ in ranked)), state, any(file.shift for file in files))


def _widened(a, b, rank, scale):
    """A and B * scale, filled up with zeros to a rank."""
    more = rank - a.shape[-1]
    a = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)])
    return a, np.pad(b * np.float32(scale), ((0, more), (0, 0)))


def _take_over(backbone, kernels, file, scale, new):
    """Switch on what a `_File` needs and assign what it holds. new: LoRA is off."""
    if new:
        for name in file.pairs:
            kernels[name].enable_lora(file.rank, lora_alpha=file.alpha)
    if new or file.others:
        freeze(backbone)
    for name, (a, b) in file.pairs.items():
        lora = lora_of(kernels[name])
        lora.a.assign(a)
        lora.b.assign(b * (scale * file.alpha / lora.alpha))
    if file.state is not None:
        if not backbone.start_states:
            enable_state_tuning(backbone, file.shift)
        set_tuned_state(backbone, file.state)
    for name, array in file.others.items():
        variable = backbone.variable_at(name)
        variable.assign(array)
        variable.trainable = True
    if new or file.others:
        backbone.changed()


def _weights(backbone):
    """Path -> variable of every weight of the model that is not quantised; none of LoRA or a tuned state."""
    paths = [rule.path for rule in filled(backbone.config.rules())]
    halves = {path for path in paths if is_halved(backbone.variable_at(path.rpartition("/")[0]))}
    found = {path: backbone.variable_at(path) for path in paths if path not in halves}
    return {path: variable for path, variable in found.items() if "float" in str(getattr(variable, "dtype", ""))}


def _others(backbone):
    """Path -> variable of the weights that train beside LoRA and states; none while nothing is frozen."""
    known = _weights(backbone)
    trained = {path: variable for path, variable in known.items() if getattr(variable, "trainable", False)}
    return {} if len(trained) == len(known) else trained


def _kernels(backbone):
    """Path -> layer of every projection: what has a kernel."""
    paths = [rule.path.removesuffix("/kernel") for rule in filled(backbone.config.rules()) if "kernel" in rule.path]
    return {path: backbone.variable_at(path) for path in paths}


def _chosen(kernels, targets):
    """Those of `kernels` that the targets name."""
    if targets is None:
        return {path: layer for path, layer in kernels.items() if path.startswith("blocks/")}
    names = {path: {layer.name, *path.split("/")[2:]} if "/" in path else {path} for path, layer in kernels.items()}
    known = sorted(set().union(*names.values()) - {"time_mix", "channel_mix", "a", "b", "output_projection"})
    targets = [targets] if isinstance(targets, str) else list(targets)
    unknown = sorted(set(map(str, targets)) - set(known))
    if unknown or not targets:
        raise ValueError(f"`targets` are names of projections: {', '.join(known)}. Received: {targets!r}.")
    return {path: layer for path, layer in kernels.items() if names[path] & set(targets)}


def _alpha(layers):
    """The alpha of all LoRAs."""
    return next((float(lora_of(layer).alpha) for layer in layers.values()), None)


def _official(backbone):
    """Path of a projection -> the official name of its matrix without `.weight`, for those that are plain matrices."""
    rules = {rule.path.removesuffix("/kernel"): rule.names[0] for rule in filled(backbone.config.rules())}
    return {path: name.removesuffix(".weight") for path, name in rules.items() if name.endswith(".weight")}


def _pairs(backbone, layers):
    """'blocks.0.att.key' -> (A [r, in], B [out, r]), as other projects have them."""
    official = _official(backbone)
    strange = sorted(path for path in layers if path not in official)
    if strange or not layers:
        raise ValueError(
            "Files of RWKV-PEFT and web-rwkv hold LoRAs of plain matrices. "
            + (f"This model has others, such as '{strange[0]}': choose `targets`, or save as .safetensors." if strange
               else "This model has none: call `enable_lora` first.")
        )  # fmt: skip
    return {
        official[path]: tuple(ops.convert_to_numpy(part).T for part in (lora_of(layer).a, lora_of(layer).b))
        for path, layer in layers.items()
    }


def _foreign(backbone, path, alpha):
    """The `_File` in another project's file."""
    adapter = read_adapter(path)
    if adapter.kind != "lora" or adapter.copies:
        raise WeightsError(
            f"'{path}' is more than a LoRA, or another kind of adapter. `merge_lora` adds it to the weights for good."
        )
    paths = {name: where for where, name in _official(backbone).items()}
    pairs = {paths.get(name, name): tuple(part.read().T for part in parts) for name, parts in adapter.parts.items()}
    return _File(pairs, alpha)


def _own(backbone, path):
    """The `_File` in a file of `save_adapter`."""
    with open_safetensors(path) as tensors:
        if tensors.metadata.get("format") != OWN:
            raise WeightsError(
                f"'{path}' is no adapter file of `save_adapter`. Foreign LoRAs end in {' or '.join(LORA_FILES)}."
            )
        found = own_adapter(tensors, path)
        sizes = {name: value for name, value in found.config.items() if "epsilon" not in name}
        ours = {name: value for name, value in backbone.config.to_dict().items() if "epsilon" not in name}
        if sizes != ours:
            differing = ", ".join(
                f"{n} {shown(sizes.get(n))}, not {ours[n]!r}" for n in ours if sizes.get(n) != ours[n]
            )
            raise WeightsError(f"'{path}' was tuned on another model: {differing or 'other keys'}.")
        pairs = {name: (a.read(), b.read()) for name, (a, b) in found.pairs.items()}
        state = found.state and RWKVState(*(part.read() for part in found.state), backbone.config.model)
        others = {name: part.read() for name, part in found.others.items()}
    return _File(pairs, found.alpha, state, found.shift, others)
