"""web-rwkv and Ai00: `.st` files, which are `.safetensors` with their names, in float16 unless told otherwise.

The names are lower case, `time_mix` and `time_first` for every version, and low-rank factors are Linear weights
[out, in]. github.com/cryscan/web-rwkv, assets/scripts/convert_safetensors.py.
"""

import re

from bert4keras_rwkv.weights.formats.foreign import TURNED, Dialect, for_each_channel
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, derived

VERSIONS = ("4", "5.1", "5.2", "6", "7")
FACTORS_6 = re.compile(r"\.att\.(time_(maa|mix|decay)_w[12]|time_state)$")
FACTORS_7 = re.compile(r"\.att\.([wavg][12]|time_state)$")


def _speaks(shapes):
    """RWKV-4 looks alike in both. RWKV-7 differs in the shapes of its factors only; if they do not tell, nobody can."""
    if "blocks.0.att.r_k" in shapes:
        return _speaks_7(shapes)
    return "blocks.0.att.time_mix_x" in shapes or _five(shapes)


def _five(shapes):
    """RWKV-5: their `time_first` has a number for each channel, that of an official file one for each head."""
    return "blocks.0.att.ln_x.weight" in shapes and len(shapes.get("blocks.0.att.time_first", ())) == 2


def _speaks_7(shapes):
    """Whether the first factors are [rank, C] instead of [C, rank]. Square ones say nothing; all of them square is an
    error.
    """
    width = shapes["emb.weight"][-1] if shapes.get("emb.weight") else None
    found = set()
    for name, shape in shapes.items():
        if re.search(r"\.att\.[wavg][12]$", name) and len(shape) == 2 and shape[0] != shape[1] and width in shape:
            found.add((shape[0] == width) == name.endswith("1"))  # True: as in an official file
    if len(found) == 1:
        return not found.pop()
    raise WeightsError(
        "These weights may be those of a `.pth` or web-rwkv's, which have the same names for RWKV-7: "
        + ("the ranks of w1, a1, v1 and g1 all equal the hidden size. " if not found else "their shapes disagree. ")
        + "Say which: `convert --from safetensors` or `--from st`, or `open_weights(path, format='st')`."
    )


def _read(tensors):
    shapes = tensors.shapes
    seven, six, five = "blocks.0.att.r_k" in shapes, "blocks.0.att.time_mix_x" in shapes, _five(shapes)
    factors = FACTORS_7 if seven else FACTORS_6
    entries = {}
    for name in tensors:
        entry = derived(TURNED.load, tensors.entry(name)) if factors.search(name) else tensors.entry(name)
        if six:
            name = name.replace(".time_mix_", ".time_maa_")
        if six or five:
            name = name.replace(".time_first", ".time_faaaa")
        entries[name] = entry
    return Tensors(entries, tensors.metadata, tensors.close)


def _write(tensors, config):
    if config.variant == "5.0":
        raise WeightsError(
            "RWKV-5.0 has no gate, and web-rwkv's RWKV-5 always has one. RWKV-5.1 and 5.2 can be written."
        )
    entries = {name: tensors.entry(name) for name in tensors}
    if config.variant == "5.1":
        entries = for_each_channel(entries, config.attention_head_size)
    factors = FACTORS_7 if config.model == "rwkv7" else FACTORS_6
    result = {}
    for name, entry in entries.items():
        entry = derived(TURNED.load, entry) if factors.search(name) else entry
        result[name.replace(".time_maa_", ".time_mix_").replace(".time_faaaa", ".time_first").lower()] = entry
    return Tensors(result, tensors.metadata, tensors.close)


WEB_RWKV = Dialect(_speaks, _read, _write)


def _write_file(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_safetensors(path, WEB_RWKV.write(tensors, config), dtype or FORMAT.dtype, progress=progress)


FORMAT = Format(
    "st",
    "web-rwkv and Ai00 `.st`",
    VERSIONS,
    suffix=".st",
    write=_write_file,
    dialect=WEB_RWKV,
    dtype="float16",
)
