"""GGUF files of llama.cpp that hold an RWKV-6 or RWKV-7, as lazy tensors under official names.

Undone on the way: transposed and fused tensors, the division of llama.cpp's "rescale" (by powers of two, so exactly)
and blocks of quantised numbers, which become float32.
"""

import logging

import numpy as np

from bert4keras_rwkv.untrusted import shown
from bert4keras_rwkv.versions.table import IDENTITY, filled
from bert4keras_rwkv.weights.binary_file import BinaryFile
from bert4keras_rwkv.weights.folder import TEMPLATE
from bert4keras_rwkv.weights.formats.llama_cpp.blocks import metadata_of, stored_size, stored_tensor
from bert4keras_rwkv.weights.formats.llama_cpp.header import read_header
from bert4keras_rwkv.weights.formats.llama_cpp.names import ARCHITECTURES, COPIES, gguf_rules, layers_of
from bert4keras_rwkv.weights.formats.llama_cpp.packed import packed_blocks
from bert4keras_rwkv.weights.formats.llama_cpp.tokens import read_tokens
from bert4keras_rwkv.weights.formats.llama_cpp.write import DTYPES, TEMPLATE_KEY, write_gguf
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.loading import export
from bert4keras_rwkv.weights.packed import OFFERED
from bert4keras_rwkv.weights.shards import every_problem
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError

MAGIC = b"GGUF"
USUAL_EPSILON = 1e-5
MOST_HALVINGS = 64
MOST_IN_A_HEAD = 1 << 16

logger = logging.getLogger("bert4keras_rwkv")


def is_gguf(path, start):
    """Whether it begins as one."""
    return start.startswith(MAGIC)


def open_gguf(path, config=None):
    """The tensors of a GGUF file under their official names, lazily. Damage or another model is a `WeightsError`.

    `metadata` has the `vocabulary`, {id: bytes} or None, what `blocks.metadata_of` says, and for `packed.as_packed` the
    matrices in blocks.
    """
    reader = BinaryFile(path)
    try:
        values, stored = read_header(reader, ARCHITECTURES)
        return _opened(reader, values, stored)
    except WeightsError as error:
        reader.close()
        raise reader.named(error) from error.__cause__
    except (ValueError, IndexError, TypeError) as error:
        reader.close()
        raise reader.broken(f"its tensors do not fit each other ({error})") from error


def _opened(reader, values, stored):
    """`Tensors` of an RWKV."""
    from gguf import Keys

    architecture = values[Keys.General.ARCHITECTURE].decode()

    def value(key, default):
        return values.get(key.format(arch=architecture), default)

    parts = values.get(Keys.Split.LLM_KV_SPLIT_COUNT, 1)
    if parts not in (0, 1):
        raise WeightsError(
            f"'{reader.path}' is one of {shown(parts)} parts of a GGUF file. Join them: llama-gguf-split --merge."
        )
    _warn_about_epsilon(reader, value(Keys.Attention.LAYERNORM_EPS, USUAL_EPSILON))
    layers = layers_of(stored)
    fused = any(name.endswith("time_mix_lerp_fused.weight") for name in stored)
    head_size = value(Keys.WKV.HEAD_SIZE, 0)
    if not isinstance(head_size, int) or not 0 <= head_size < MOST_IN_A_HEAD:
        raise reader.broken(f"it has heads of {shown(head_size)} channels")
    rules = gguf_rules(architecture, layers, head_size, fused)
    _compare_names(reader, rules, stored)
    paths = [rule.path for rule in filled(rules)]
    found = {name: stored_tensor(reader, name, at.offset, at.shape, at.kind) for name, at in stored.items()}
    factors = {}
    if architecture == "rwkv6":
        factors = _factors(reader, layers, value(Keys.LLM.RESCALE_EVERY_N_LAYERS, 0))
        found |= {path: found[path].changed(_times(by), found[path].dtype) for path, by in factors.items()}
    tensors = export(rules, found.__getitem__)
    types = {
        name: stored[path].kind.name for path, rule in zip(paths, filled(rules), strict=True) for name in rule.names
    }
    sizes = (stored_size(path, stored[path].shape, stored[path].kind) for path in paths)
    metadata = {"format": "gguf", **metadata_of(types, sizes), "vocabulary": read_tokens(values)}
    metadata[OFFERED] = _packable(reader, rules, stored, factors)
    said = values.get(TEMPLATE_KEY)
    if isinstance(said, bytes):
        metadata[TEMPLATE] = said.decode("utf-8", "replace")
    return Tensors(tensors.entries(), metadata, reader.close)


def _compare_names(reader, rules, stored):
    """Raise one `WeightsError` for all names that are missing or too many."""
    wanted = {rule.path for rule in filled(rules)}
    unused = {f"blk.0.time_mix_{name}.weight" for name in COPIES}
    missing, extra = sorted(wanted - set(stored)), sorted(set(stored) - wanted - unused)
    problems = [f"nothing is named '{name}'" for name in missing] + [f"no rule for '{name}'" for name in extra]
    every_problem(reader.path, problems)


def _packable(reader, rules, stored, factors):
    """Official name -> `Packed` of the matrices in blocks that lie there as they do officially."""
    alike = {rule.names[0]: rule.path for rule in filled(rules) if rule.transform is IDENTITY}
    del alike["emb.weight"]  # whose rows are looked up
    found = {name: packed_blocks(reader, path, stored[path], factors.get(path, 1)) for name, path in alike.items()}
    return {name: packed for name, packed in found.items() if packed is not None}


def _factors(reader, layers, every):
    """Name -> what llama.cpp's converter divided it by, of the tensors that it halves for every so many layers."""
    if not isinstance(every, int) or every < 0 or (every and (layers - 1) // every > MOST_HALVINGS):
        raise reader.broken(f"it halves activations every {shown(every)} of {layers} layers")
    names = ("time_mix_output", "channel_mix_value")
    divided = range(every, layers) if every else ()
    return {f"blk.{i}.{name}.weight": 2 ** (i // every) for i in divided for name in names}


def _times(factor):
    """A function that multiplies by a power of two: exact in every dtype."""

    def multiplied(array):
        wide = np.promote_types(array.dtype, np.float32)
        return (array.astype(wide) * wide.type(factor)).astype(array.dtype)

    return multiplied


def _warn_about_epsilon(reader, epsilon):
    """Say so if the model was trained with another epsilon than every official one."""
    if isinstance(epsilon, float) and abs(epsilon / USUAL_EPSILON - 1) > 1e-6:
        logger.warning("'%s' says a layer_norm_epsilon of %g: build the model with it.", reader.path, epsilon)


def _write(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_gguf(path, tensors, config, dtype, tokenizer, progress)


FORMAT = Format(
    "gguf", "GGUF of llama.cpp", ("6", "7"), is_gguf, open_gguf, ".gguf", _write, dtypes=DTYPES, vocabulary=True
)
