"""LoRA on Keras' own `enable_lora`, and adapter files: what was tuned, apart from the weights it was tuned on.

W + alpha / rank * A B for a kernel W (inputs, outputs), A (inputs, rank), B (rank, outputs); arXiv 2106.09685.
"""

import json

import numpy as np
from keras import ops

from bert4keras_rwkv.models.tuning import enable_state_tuning, freeze, set_tuned_state, tuned_state
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights.adapters import ALPHA, read_adapter, save_lora
from bert4keras_rwkv.weights.errors import WeightsError
from bert4keras_rwkv.weights.formats.safetensors_file import open_safetensors, write_safetensors
from bert4keras_rwkv.weights.rules import filled, rules_of

FORMAT = "bert4keras_rwkv.adapter"
LORA_FILES = (".pth", ".st")  # RWKV-PEFT's and web-rwkv's; everything else is our own


def enable_lora(backbone, rank, alpha=None, targets=None):
    """Give projections a LoRA each and freeze all other weights, tuned states excepted.

    rank: of A and B. alpha: None for rank, which scales A B by 1. targets: names of projections: 'receptance', 'key',
    'value', 'gate', 'output', low-rank layers such as 'decay_low_rank', and 'head'; None: all in the blocks.
    Raises ValueError for unknown names, and if LoRA is on already.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`rank` is a positive whole number. Received: rank={rank!r}.")
    if adapted(backbone):
        raise ValueError("LoRA is on already. `save_adapter` writes it, `merge_adapter` adds it to the weights.")
    for layer in _chosen(_kernels(backbone), targets).values():
        layer.enable_lora(rank, lora_alpha=rank if alpha is None else alpha)
    freeze(backbone)


def adapted(backbone):
    """Path -> layer of every projection that has a LoRA: 'blocks/0/time_mix/key'."""
    return {path: layer for path, layer in _kernels(backbone).items() if layer.lora_enabled}


def merge_adapter(backbone, scale=1.0):
    """Add every LoRA, times `scale`, to the weights and start it anew at zero: at scale 1 the model stays as it was."""
    for layer in adapted(backbone).values():
        change = ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b) * (scale * layer.lora_alpha / layer.lora_rank)
        layer._kernel.assign(layer._kernel + ops.cast(change, layer._kernel.dtype))
        layer.lora_kernel_b.assign(np.zeros(layer.lora_kernel_b.shape, "float32"))


def save_adapter(backbone, path):
    """Write LoRA weights and the tuned state to a safetensors file of our own, exactly; whole or not at all.

    A path that ends in `.pth` or `.st` gets the LoRA alone, as RWKV-PEFT or web-rwkv have it.
    """
    layers = adapted(backbone)
    if str(path).endswith(LORA_FILES):
        save_lora(path, _pairs(backbone, layers), _alpha(layers))
        return
    tensors = {}
    for name, layer in layers.items():
        for part in "ab":
            tensors[f"{name}/lora_{part}"] = ops.convert_to_numpy(getattr(layer, f"lora_kernel_{part}"))
    if backbone.start_states:
        state = tuned_state(backbone)
        tensors |= {"start/wkv": state.wkv, "start/shift": np.asarray(state.shift, "float32")}
    if not tensors:
        raise ValueError("Nothing is tuned. Call `enable_lora` or `enable_state_tuning` first.")
    shift = bool(backbone.start_states and backbone.start_states[0].shift)
    said = {"config": backbone.config.to_dict(), "shift": shift}
    if layers:
        said |= {"alpha": _alpha(layers), "rank": next(iter(layers.values())).lora_rank}
    write_safetensors(path, tensors, metadata={"format": FORMAT, "version": "1", "adapter": json.dumps(said)})


def load_adapter(backbone, path, scale=1.0, alpha=ALPHA):
    """Take over an adapter: our own file, or a LoRA of RWKV-PEFT or web-rwkv. All or nothing.

    LoRA and state tuning are switched on where the file has them; where they are on already they must fit. scale:
    multiplies what the LoRA adds. alpha: of a foreign LoRA, whose file does not say it.
    """
    if str(path).endswith(LORA_FILES):
        pairs, state = _foreign(backbone, path), None
        said = {"alpha": alpha}
    else:
        pairs, state, said = _own(backbone, path)
    kernels, here = _kernels(backbone), adapted(backbone)
    problems = [f"no projection '{name}'" for name in pairs if name not in kernels]
    for name, (a, b) in pairs.items():
        shape = () if name not in kernels else tuple(kernels[name]._kernel.shape)
        if shape and (a.shape[:-1] != shape[:-1] or b.shape[1:] != shape[-1:] or a.shape[-1] != b.shape[0]):
            problems.append(f"'{name}' is {shape}, its LoRA {a.shape} and {b.shape}")
    ranks = {a.shape[-1] for a, _ in pairs.values()}
    if len(ranks) > 1:
        problems.append(f"its ranks are {sorted(ranks)}; they should be one")
    if here and pairs and (set(here) != set(pairs) or {layer.lora_rank for layer in here.values()} != ranks):
        problems.append("LoRA is on for other projections or another rank")
    if problems:
        raise WeightsError(f"'{path}' does not fit this {backbone.config.model}:\n  " + "\n  ".join(problems[:20]))
    if pairs and not here:
        for name in pairs:
            kernels[name].enable_lora(*ranks, lora_alpha=said["alpha"])
        freeze(backbone)
    for name, (a, b) in pairs.items():
        layer = kernels[name]
        layer.lora_kernel_a.assign(a)
        layer.lora_kernel_b.assign(b * (scale * said["alpha"] / layer.lora_alpha))
    if state is not None:
        if not backbone.start_states:
            enable_state_tuning(backbone, said["shift"])
        set_tuned_state(backbone, state)


def _kernels(backbone):
    """Path -> layer of every projection: what has a kernel."""
    paths = [rule.path.removesuffix("/kernel") for rule in filled(rules_of(backbone.config)) if "kernel" in rule.path]
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
    return next((float(layer.lora_alpha) for layer in layers.values()), None)


def _official(backbone):
    """Path of a projection -> the official name of its matrix without `.weight`, for those that are plain matrices."""
    rules = {rule.path.removesuffix("/kernel"): rule.names[0] for rule in filled(rules_of(backbone.config))}
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
        official[path]: tuple(ops.convert_to_numpy(part).T for part in (layer.lora_kernel_a, layer.lora_kernel_b))
        for path, layer in layers.items()
    }


def _foreign(backbone, path):
    """Path of a projection -> (A, B) as our layers have them, from another project's file."""
    adapter = read_adapter(path)
    if adapter.kind != "lora" or adapter.copies:
        raise WeightsError(
            f"'{path}' is more than a LoRA, or another kind of adapter. `merge_lora` adds it to the weights for good."
        )
    paths = {name: where for where, name in _official(backbone).items()}
    return {paths.get(name, name): tuple(part.read().T for part in parts) for name, parts in adapter.parts.items()}


def _own(backbone, path):
    """The pairs by path, the state or None, and what the file says of itself."""
    with open_safetensors(path) as tensors:
        if tensors.metadata.get("format") != FORMAT:
            raise WeightsError(
                f"'{path}' is no adapter file of `save_adapter`. Foreign LoRAs end in {' or '.join(LORA_FILES)}."
            )
        said = json.loads(tensors.metadata["adapter"])
        sizes = {name: value for name, value in said["config"].items() if "epsilon" not in name}
        ours = {name: value for name, value in backbone.config.to_dict().items() if "epsilon" not in name}
        if sizes != ours:
            differing = ", ".join(f"{n} {sizes.get(n)}, not {ours.get(n)}" for n in ours if sizes.get(n) != ours[n])
            raise WeightsError(f"'{path}' was tuned on another model: {differing or 'other keys'}.")
        names = sorted({name.rpartition("/")[0] for name in tensors if name.endswith(("/lora_a", "/lora_b"))})
        pairs = {name: (tensors[f"{name}/lora_a"], tensors[f"{name}/lora_b"]) for name in names}
        state = None
        if "start/wkv" in tensors:
            state = RWKVState(tensors["start/wkv"], tensors["start/shift"], backbone.config.model)
    return pairs, state, said
