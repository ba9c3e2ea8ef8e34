"""The `.st` files of web-rwkv and Ai00: `.safetensors` with web-rwkv's names, in float16 unless told otherwise."""

from bert4keras_rwkv.weights.dialects.web_rwkv import VERSIONS, WEB_RWKV
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.formats.safetensors_file import write_safetensors


def _write(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_safetensors(path, WEB_RWKV.write(tensors, config), dtype or FORMAT.dtype, progress=progress)


FORMAT = Format(
    "st",
    "web-rwkv and Ai00 `.st`",
    VERSIONS,
    suffix=".st",
    write=_write,
    dialect=WEB_RWKV,
    dtype="float16",
)
