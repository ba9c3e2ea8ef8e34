"""For the tests of GGUF: random weights in sizes that have whole blocks, and files by the library's own writer."""

import gguf
import numpy as np

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.tokenizers import RWKV_TOKENIZER
from bert4keras_rwkv.weights import open_weights

# Larger than the tiny weights of other tests: rows of 64 and 96 are whole blocks of 32, ranks are not.
SIZES = {"heads": 2, "head_size": 32, "ffn": 96, "ids": 300, "layers": 3}


def config_for(arrays):
    return RWKVConfig.from_shapes({name: array.shape for name, array in arrays.items()})


def small_tokenizer(tokens=()):
    """Every byte, a pair of newlines, and what is given, from id 258 on: as the World vocabulary begins."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"\n\n", *tokens]
    return RWKV_TOKENIZER.from_entries(dict(enumerate(tokens, 1)))


def contents(path):
    with open_weights(path) as tensors:
        return dict(tensors)


def library(path):
    """The tensors of a file as the library's reader sees them: name -> (type, float32 array)."""
    read = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, gguf.quants.dequantize(t.data, t.tensor_type)) for t in read.tensors}


def stored(path):
    """The tensors of a file as they lie there: name -> (array, type), for `save`."""
    return {t.name: (np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def keys(path):
    """The keys of a file as the library's reader sees them."""
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def save(path, architecture, tensors, head_size=32, **more):
    """Write a file with the library. tensors: name -> (array, type or None); more: names of its `add_...` -> value."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {"wkv_head_size": head_size, **more}.items():
        getattr(writer, f"add_{name}")(value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rounded(name, array, kind):
    """What the library makes of a tensor. RWKV-7's low-rank factors lie transposed in a file."""
    factor = name.rsplit(".", 1)[-1] in ("a1", "a2", "g1", "g2", "v1", "v2")
    lying = np.ascontiguousarray(array.T) if factor else array
    lying = gguf.quants.dequantize(gguf.quants.quantize(lying, kind), kind)
    return lying.T if factor else lying
