"""State files: what a model begins with instead of nothing, tuned or kept from a text.

Foreign files hold `blocks.{i}.att.time_state` (H, N, N) for each layer of an RWKV-5.2, 6 or 7, and no token-shift
vectors, which are zero then. The matrices are [head, value, key] in files of RWKV-LM and RWKV-PEFT, for every version,
and [head, key, value] in those of web-rwkv and Ai00. As H heads of N x N look alike both ways, the container decides;
see `layout_of`.
"""

import re
from pathlib import Path

import numpy as np

from bert4keras_rwkv.state import FORMAT, RWKVState
from bert4keras_rwkv.weights.casting import is_floating
from bert4keras_rwkv.weights.checkpoint import open_weights
from bert4keras_rwkv.weights.formats.pth_writer import write_pth
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors
from bert4keras_rwkv.weights.part_files import WEB_SUFFIXES, open_part, some, zipped
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError

NAME = "blocks.{}.att.time_state"
PATTERN = re.compile(r"blocks\.(\d{1,6})\.att\.time_state")
# 'pth': [head, value, key] of RWKV-LM and RWKV-PEFT; 'st': [head, key, value] of web-rwkv; 'own': `RWKVState.save`.
LAYOUTS = ("auto", "pth", "st", "own")
IN_FULL = "Write it with the layout 'own', which any suffix but .pth and .st means"


def read_state(path, config, layout="auto", dtype="float32"):
    """The RWKVState in a file, for a model of this `config`. dtype: of its `shift`.

    layout: one of `LAYOUTS`; 'auto' decides as `layout_of` does. A file of our own may hold several texts, others hold
    one. Raises `WeightsError` for a state of another model, with its sizes, and for what is no state.
    """
    _known(layout)
    with open_part(path) as tensors:
        if is_own(tensors):
            if layout not in ("auto", "own"):
                raise WeightsError(f"'{path}' says that it is a file of `RWKVState.save`. Leave layout={layout!r} out.")
            return _fitting(path, RWKVState.load(path), config)
        if layout == "own":
            raise WeightsError(f"'{path}' is no file of `RWKVState.save`. Leave layout='own' out.")
        if layout == "auto" and "emb.weight" in tensors:
            with open_weights(path) as merged:  # which may put the tensors of other projects in the official layout
                return _foreign(path, merged, config, "pth", dtype)
        return _foreign(path, tensors, config, layout if layout != "auto" else layout_of(path, tensors), dtype)


def write_state(path, state, layout="auto", drop_shift=False):
    """Write an RWKVState, whole or not at all.

    layout: 'own' keeps everything; 'pth' (float32) and 'st' (float16) are for other programs and hold the matrices of
    one text only, so that shift vectors other than zero are refused, unless `drop_shift`. 'auto': by the suffix, `.pth`
    or `.st`, and 'own' for any other.
    """
    _known(layout)
    if layout == "auto":
        layout = {".pth": "pth", ".st": "st"}.get(Path(path).suffix, "own")
    if layout == "own":
        state.save(path)
        return
    matrices = _matrices(state.numpy(), drop_shift)
    if layout == "st":
        write_safetensors(path, matrices, "float16")
    else:
        write_pth(path, {name: array.swapaxes(1, 2) for name, array in matrices.items()}, "float32")


def layout_of(path, tensors):
    """'pth' or 'st', for a file that is not our own.

    A `.pth` is [head, value, key]. Of safetensors, `.st` and `.state` are web-rwkv's, [head, key, value]; under another
    name float32 and bfloat16 are a `.pth` that was converted as it is, for web-rwkv only writes float16. float16 is
    neither for sure: a `WeightsError` that asks for `layout`.
    """
    if zipped(path):
        return "pth"
    if Path(path).suffix in WEB_SUFFIXES:
        return "st"
    if any(dtype == np.float16 for name, dtype in tensors.dtypes.items() if PATTERN.fullmatch(name)):
        raise WeightsError(
            f"The float16 matrices of '{path}' may be [value, key] or [key, value], and its name does not tell. Name "
            "it .st, or give layout='st', if it was made for web-rwkv or Ai00, or layout='pth' if it is a converted "
            "`.pth`."
        )
    return "pth"


def is_own(tensors):
    """Whether opened tensors are those of `RWKVState.save`."""
    return tensors.metadata.get("format") == FORMAT


def state_sizes(tensors):
    """Layers, heads, head size, dtype and more of opened tensors, as plain values; None if they are no state alone."""
    if is_own(tensors) and {"wkv", "shift"} <= set(tensors):
        shape = tensors.shapes["wkv"]
        if len(shape) not in (4, 5):
            raise WeightsError(f"The file says that it is a state, and its `wkv` has the shape {shape}.")
        texts, layers, *sizes = shape
        heads = {"heads": sizes[0], "head_size": sizes[1]} if len(sizes) == 3 else {"hidden_size": sizes[-1]}
        model = tensors.metadata.get("model") or "not said"
        return {"kind": "state", "model": model, "texts": texts, "layers": layers, **heads} | _dtype(tensors, "wkv")
    matrices = _states(tensors)
    if not matrices or len(matrices) < len(tensors):
        return None
    first = next(iter(matrices))
    heads, head_size = (*tensors.shapes[first], 0, 0)[:2]
    return {"kind": "state", "layers": len(matrices), "heads": heads, "head_size": head_size} | _dtype(tensors, first)


def _dtype(tensors, name):
    return {"dtype": str(tensors.dtypes[name])}


def _known(layout):
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` is one of {', '.join(map(repr, LAYOUTS))}. Received: layout={layout!r}.")


def _states(tensors):
    """The part of `tensors` that is states."""
    return Tensors({name: tensors.entry(name) for name in tensors if PATTERN.fullmatch(name)})


def _foreign(path, tensors, config, layout, dtype):
    """The RWKVState of matrices in `layout`."""
    if config.num_attention_heads is None:
        raise WeightsError(
            f"'{path}' is not a file of `RWKVState.save`. Files of other programs hold no state of an RWKV-4, only "
            "matrices of later versions."
        )
    found = _states(tensors)
    if not found:
        raise WeightsError(f"'{path}' holds no state: no '{NAME.format(0)}'. There is: {some(tensors)}.")
    _check(path, found, config)
    state = RWKVState.zeros(config, 1, dtype)
    for i in range(config.num_hidden_layers):
        matrix = found[NAME.format(i)].astype(state.wkv.dtype)
        state.wkv[0, i] = matrix if layout == "st" else matrix.swapaxes(1, 2)
    return state


def _check(path, found, config):
    """Raise one `WeightsError` with all that speaks against `found` being a state of this model."""
    n, H, N = config.num_hidden_layers, config.num_attention_heads, config.attention_head_size
    wanted = {NAME.format(i) for i in range(n)}
    lines = []
    if len(found) != n:
        lines.append(f"it has {len(found)} layers, the model {n}")
    elif set(found) != wanted:
        lines.append(f"it has no {some(sorted(wanted - set(found)))}, but {some(sorted(set(found) - wanted))}")
    for shape in sorted(set(found.shapes.values()) - {(H, N, N)}):
        heads = f"{shape[0]} heads of {shape[1]}" if len(shape) == 3 and shape[1] == shape[2] else f"shape {shape}"
        lines.append(f"it has {heads}, the model {H} heads of {N}")
    lines += [
        f"'{name}' is {dtype}, which no state is" for name, dtype in found.dtypes.items() if not is_floating(dtype)
    ]
    if lines:
        reasons = "\n  ".join(lines)
        raise WeightsError(f"'{path}' is not a state of this {config.model}:\n  {reasons}")


def _fitting(path, state, config):
    """`state` if the sizes and the version are those of `config`."""
    try:
        state.check(config, f"'{path}'")
    except ValueError as error:
        raise WeightsError(str(error)) from None
    return state


def _matrices(state, drop_shift):
    """Official name -> (H, key, value) of a state that other programs can hold."""
    if state.wkv.ndim != 5:
        raise ValueError(f"No other program reads states of an RWKV-4 from a file. {IN_FULL}.")
    if state.batch != 1:
        raise ValueError(
            f"A file of this layout holds the state of one text. Received: {state.batch}. {IN_FULL}, or "
            "write `state[i]`."
        )
    if not drop_shift and np.asarray(state.shift, np.float32).any():
        raise ValueError(
            "This layout has no place for the token-shift vectors, and those of the state are not zero: reading on "
            f"from the file would give other logits. {IN_FULL}, or lose them: drop_shift=True, or --drop-shift."
        )
    return {NAME.format(i): matrix for i, matrix in enumerate(state.wkv[0])}
