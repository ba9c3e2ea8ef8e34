"""Files of adapters, RWKV-PEFT's and web-rwkv's: small changes to the matrices of a model.

For a matrix W [out, in] under 'P.weight' a file holds, with rank r:
    LoRA            P.lora_A [r, in], P.lora_B [out, r]     W + alpha / r * B A       alpha is not in the file
      of web-rwkv   P.lora.0 [in, r], P.lora.1 [out, r]     the same, A transposed
    PiSSA           as LoRA, beside a file of the factors it began with: P.init_lora_A, P.init_lora_B
                                                            W - B0 A0 + B A           no alpha
    DiSHA, Bone     P.disha [r, out]                        W[o, j] + D[j mod r, o]
    Bat             P.disha [in / r, r, r]                  W + W_ab D_b + D_b for each block [r, r] of W, column b
and whole tensors under their own names (RWKV-PEFT's `train_parts`), which replace those of the model.
github.com/JL-er/RWKV-PEFT, merge/; github.com/cryscan/web-rwkv.
"""

import math
import re
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np

from bert4keras_rwkv.untrusted import parse_json
from bert4keras_rwkv.versions import versions
from bert4keras_rwkv.weights.formats.pth_writer import write_pth
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors
from bert4keras_rwkv.weights.formats.web_rwkv import WEB_RWKV
from bert4keras_rwkv.weights.part_files import WEB_SUFFIXES, open_part, some
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, as_tensors, transposed

PART = re.compile(r"(.+)\.(lora_A|lora_B|lora\.0|lora\.1|disha|init_lora_A|init_lora_B)")
ALPHA = 32  # RWKV-PEFT's default
OWN = "bert4keras_rwkv.adapter"  # how the files of `RWKV.save_adapter` name themselves
WHOLE = "weights/"  # in them, before the path of a weight that was tuned itself
STATE = ".att.time_state"  # a tuned initial state; no tensor of the model, see `weights.states`
TITLES = {"lora": "LoRA or PiSSA", "initial": "what a PiSSA began with", "bone": "DiSHA (Bone)", "bat": "Bat"}


@dataclass(frozen=True)
class Adapter:
    """What a file changes. kind: a key of `TITLES`. parts: 'P' -> its `Tensor` or two. copies: name -> `Tensor`."""

    path: str
    kind: str
    parts: dict
    copies: dict = field(default_factory=dict)

    @property
    def ranks(self):
        """The ranks of its matrices, each once."""
        axis = 1 if self.kind == "bat" else 0
        return sorted({parts[0].shape[axis] for parts in self.parts.values()})

    @property
    def changes(self):
        """The official names of what it changes."""
        return {f"{name}.weight" for name in self.parts} | set(self.copies)


def adapter_of(tensors, path):
    """The `Adapter` in opened tensors. Raises `WeightsError` if there is none, or half of one, or two kinds of them."""
    found, copies = {}, {}
    for name in tensors:
        matched = PART.fullmatch(name)
        if matched:
            found.setdefault(matched[1], {})[matched[2]] = tensors.entry(name)
        elif not name.endswith(STATE):
            copies[name] = tensors.entry(name)
    if not found:
        raise WeightsError(
            f"'{path}' is no LoRA, PiSSA, DiSHA, Bone or Bat: nothing like 'blocks.0.att.key.lora_A' or "
            f"'blocks.0.att.key.disha' is in it. There is: {some(tensors)}."
        )
    parts = {name: _part(name, one, path) for name, one in found.items()}
    kinds = sorted({kind for kind, _ in parts.values()})
    if len(kinds) > 1:
        raise WeightsError(f"'{path}' mixes {' and '.join(TITLES[kind] for kind in kinds)}. One file has one kind.")
    if any("lora.0" in one for one in found.values()):
        translated = WEB_RWKV.read(Tensors(copies))
        copies = {name: translated.entry(name) for name in translated}
    return Adapter(str(path), kinds[0], {name: entries for name, (_, entries) in parts.items()}, copies)


def read_adapter(path):
    """The `Adapter` in a file, all of it in memory: it is small, and a damaged one shows before anything is merged."""
    with open_part(path) as tensors:
        return adapter_of(as_tensors(dict(tensors)), path)


@dataclass(frozen=True)
class OwnAdapter:
    """What a file of `RWKV.save_adapter` holds, its tensors not read. config: a dict. pairs: path of a projection ->
    (A, B). state: (wkv, shift), or None. others: path of a weight -> `Tensor`.
    """

    config: dict
    shift: bool
    alpha: float
    pairs: dict
    state: tuple | None
    others: dict


def own_adapter(tensors, path):
    """The `OwnAdapter` in opened tensors. Another file, or one that is damaged, is a `WeightsError`."""
    if tensors.metadata.get("format") != OWN:
        raise WeightsError(f"'{path}' is no adapter file of `save_adapter`.")
    try:
        said = parse_json(tensors.metadata.get("adapter", ""), f"What '{path}' says of its adapter")
    except ValueError as error:
        raise WeightsError(str(error)) from error
    said = said if isinstance(said, dict) else {}
    config, alpha, entries = said.get("config"), said.get("alpha", 1.0), tensors.entries()
    names = sorted({name.rpartition("/")[0] for name in entries if name.endswith(("/lora_a", "/lora_b"))})
    pairs = {name: (entries.get(f"{name}/lora_a"), entries.get(f"{name}/lora_b")) for name in names}
    state = (entries["start/wkv"], entries.get("start/shift")) if "start/wkv" in entries else None
    others = {name.removeprefix(WHOLE): entry for name, entry in entries.items() if name.startswith(WHOLE)}
    sizes = isinstance(config, dict) and type(config.get("num_hidden_layers")) is int and _is_model(config.get("model"))
    number = type(alpha) in (int, float) and 0 < alpha < math.inf
    fits = all(a and b and len(a.shape) >= 2 and len(b.shape) == 2 for a, b in pairs.values())
    if not sizes or not number or not fits or type(said.get("shift")) is not bool or (state and None in state):
        raise WeightsError(f"'{path}' is damaged: it says that it is an adapter, and parts of one are missing.")
    return OwnAdapter(config, said["shift"], float(alpha), pairs, state, others)


def _is_model(name):
    """Whether a version goes by this name."""
    return isinstance(name, str) and name in versions()


def check_alpha(alpha):
    """A ValueError for what cannot be the alpha of a LoRA."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise ValueError(f"`alpha` is a positive number, what the adapter was trained with. Received: alpha={alpha!r}.")


def save_lora(path, pairs, alpha=None):
    """Write a LoRA, whole or not at all: float16 in web-rwkv's way to `.st`, else a `.pth` in RWKV-PEFT's, as it is.

    pairs: 'blocks.0.att.key' -> (A [r, in], B [out, r]).
    alpha: what the pairs were trained with; B is scaled so that whoever merges with the usual 32, which no file says,
    gets B A alpha / r. None: B as it is, and whoever merges has to know.
    """
    tensors = {}
    web = Path(path).suffix in WEB_SUFFIXES
    for name, (A, B) in pairs.items():
        A, B = np.asarray(A), np.asarray(B)
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise ValueError(f"A pair is A [r, in] and B [out, r]. Received for '{name}': {A.shape} and {B.shape}.")
        B = B if alpha is None else (B * (alpha / ALPHA)).astype(B.dtype)
        tensors |= {f"{name}.lora.0": A.T, f"{name}.lora.1": B} if web else {f"{name}.lora_A": A, f"{name}.lora_B": B}
    if web:
        write_safetensors(path, tensors, "float16")
    else:
        write_pth(path, tensors)


def adapter_sizes(tensors, path):
    """What `info` says of opened tensors, as plain values; None if they hold no adapter."""
    if tensors.metadata.get("format") == OWN:
        return _own_sizes(own_adapter(tensors, path), tensors)
    if not any(map(PART.fullmatch, tensors)):
        return None
    adapter = adapter_of(tensors, path)
    layers = {name.split(".")[1] for name in adapter.parts if name.startswith("blocks.")}
    return {
        "kind": "adapter",
        "adapter": TITLES[adapter.kind],
        "layers": len(layers),
        "ranks": adapter.ranks,
        "matrices": len(adapter.parts),
        "whole_tensors": len(adapter.copies),
        "dtype": str(next(iter(adapter.parts.values()))[0].dtype),
    }


def _own_sizes(adapter, tensors):
    """`adapter_sizes` of a file of `RWKV.save_adapter`."""
    parts = [("LoRA", adapter.pairs), ("state, with last inputs" if adapter.shift else "state", adapter.state)]
    return {
        "kind": "adapter",
        "adapter": " and ".join(name for name, there in parts if there) or "whole weights",
        "model": adapter.config["model"],
        "layers": adapter.config["num_hidden_layers"],
        "ranks": sorted({a.shape[-1] for a, _ in adapter.pairs.values()}),
        "matrices": len(adapter.pairs),
        "whole_tensors": len(adapter.others),
        "dtype": str(next(iter(tensors.dtypes.values()), None)),
    }


def _part(name, found, path):
    """The kind and the tensors of one matrix's adapter; of LoRA A and B."""
    if set(found) == {"disha"} and len(found["disha"].shape) in (2, 3):
        return {2: "bone", 3: "bat"}[len(found["disha"].shape)], (found["disha"],)
    if all(len(entry.shape) == 2 for entry in found.values()):
        if set(found) == {"lora_A", "lora_B"}:
            return "lora", (found["lora_A"], found["lora_B"])
        if set(found) == {"lora.0", "lora.1"}:
            return "lora", (transposed(found["lora.0"]), found["lora.1"])
        if set(found) == {"init_lora_A", "init_lora_B"}:
            return "initial", (found["init_lora_A"], found["init_lora_B"])
    shapes = ", ".join(f"'{name}.{one}' {entry.shape}" for one, entry in found.items())
    raise WeightsError(
        f"'{path}' has only {shapes} for '{name}'. Expected lora_A and lora_B, or lora.0 and lora.1, matrices, or "
        "disha with 2 or 3 dimensions."
    )
