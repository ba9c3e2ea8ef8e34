"""Writes GGUF files that llama.cpp loads, tensor by tensor and large ones row by row.

Matrices get the type that was asked for; what llama.cpp computes with in float32 is stored so: vectors, norms, mixes
of token shift, RWKV-6's bonus, and the factors of its decay. Nothing is divided ("rescale"): llama.cpp keeps its
residual stream in float32 whatever the weights are, and dividing costs float16, and the scales of blocks, their last
bits.
"""

import logging
import math
import re

import numpy as np

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.weights.casting import cast, report
from bert4keras_rwkv.weights.folder import TEMPLATE
from bert4keras_rwkv.weights.formats.llama_cpp.blocks import stored_size
from bert4keras_rwkv.weights.formats.llama_cpp.names import gguf_rules
from bert4keras_rwkv.weights.formats.llama_cpp.tokens import add_tokens
from bert4keras_rwkv.weights.loading import to_variables
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, as_tensors

PLAIN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
DTYPES = (*PLAIN, *BLOCKS)
ALWAYS_FLOAT32 = re.compile(r"time_mix_(first|lerp_fused|w1|w2|decay_w1|decay_w2)\.weight$")
# Small, and few bits in them cost much: llama.cpp's own tool does not quantise these further.
LOW_RANK = re.compile(r"time_mix_[agv][12]\.weight$")
FEW_BITS = ("q5_1", "q5_0", "q4_1", "q4_0")

CONTEXT = 1048576  # what llama.cpp's converter says of a model without a limit
TEMPLATE_KEY = "bert4keras_rwkv.template"  # llama.cpp's own key has one value for all RWKV, "rwkv-world"
GROUP_NORM_EPSILON = 64e-5  # fixed in llama.cpp

logger = logging.getLogger("bert4keras_rwkv")


def write_gguf(path, mapping, config, dtype=None, tokenizer=None, progress=None):
    """Write official name -> array as a GGUF file.

    dtype: one of `DTYPES`, for the matrices; None: each its own. A matrix whose rows are no whole blocks is float16.
    tokenizer: an RWKV_TOKENIZER or None. `progress(done, total)` is called after each tensor.
    """
    if config.model not in ("rwkv6", "rwkv7"):
        raise WeightsError(f"llama.cpp knows RWKV-6 and RWKV-7. Received: {config.model}. Choose another format.")
    if dtype not in (None, *DTYPES):
        raise WeightsError(f"A GGUF file can be written in {', '.join(DTYPES)}. Received: {dtype!r}.")
    if not math.isclose(config.group_norm_epsilon, GROUP_NORM_EPSILON):
        logger.warning("llama.cpp computes with a group_norm_epsilon of 64e-5, not %g.", config.group_norm_epsilon)
    tensors = as_tensors(mapping)
    if any(name.endswith(".time_state") for name in tensors):
        logger.warning("A GGUF file has no place for a tuned initial state: it is left out.")
    head_size, layers = config.attention_head_size, config.num_hidden_layers
    variables = to_variables(gguf_rules(config.model, layers, head_size, copies=True), tensors)
    types = {name: _type(name, variables.entry(name), dtype) for name in variables}
    with atomic_file(path) as unfinished:
        _write(unfinished, variables, types, config, tokenizer, progress)


def _type(name, entry, dtype):
    """The name of GGML's type for one tensor."""
    if len(entry.shape) != 2 or ALWAYS_FLOAT32.search(name):
        return "F32"
    if dtype is None:
        return PLAIN.get(str(entry.dtype), "F32")
    if dtype in PLAIN:
        return PLAIN[dtype]
    if entry.shape[-1] % 32 or (dtype in FEW_BITS and LOW_RANK.search(name)):
        return "F16"
    return dtype.upper()


def _write(path, variables, types, config, tokenizer, progress):
    """Header and data."""
    import gguf

    writer = gguf.GGUFWriter(path, config.model)
    try:
        _add_keys(writer, config, types)
        add_tokens(writer, tokenizer, config.vocab_size)
        if TEMPLATE in variables.metadata:
            writer.add_string(TEMPLATE_KEY, variables.metadata[TEMPLATE])
        kinds = {name: gguf.GGMLQuantizationType[kind] for name, kind in types.items()}
        for name, kind in kinds.items():
            shape = variables.entry(name).shape
            writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_size(name, shape, kind), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        for index, (name, kind) in enumerate(kinds.items()):
            writer.write_padding(file, file.tell())
            for data in _data(name, variables.entry(name), kind):
                file.write(data)
            report(progress, index + 1, variables)
        writer.write_padding(file, file.tell())
    finally:
        writer.close()


def _add_keys(writer, config, types):
    """What llama.cpp wants to know of a model. Ranks are those of the tensors."""
    import gguf

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_head_count(0)  # required, not used
    writer.add_wkv_head_size(config.attention_head_size)
    if config.model == "rwkv6":
        writer.add_rescale_every_n_layers(0)
        writer.add_time_mix_extra_dim(config.decomposer_size)
        writer.add_time_decay_extra_dim(config.time_decay_size)
    else:
        writer.add_decay_lora_rank(config.decay_low_rank_dim)
        writer.add_iclr_lora_rank(config.a_low_rank_dim)
        writer.add_value_residual_mix_lora_rank(config.v_low_rank_dim)
        writer.add_gate_lora_rank(config.gate_low_rank_dim)
    mostly = types["output.weight"]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if mostly == "F32" else f"MOSTLY_{mostly}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _data(name, entry, kind):
    """The bytes of one tensor, piece by piece."""
    from gguf.quants import quantize

    plain = next((dtype for dtype, short in PLAIN.items() if short == kind.name), None)
    for _, piece in cast(Tensors({name: entry}), plain or "float32").entry(name).pieces():
        numbers = piece if plain else quantize(piece, kind)
        yield np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data
