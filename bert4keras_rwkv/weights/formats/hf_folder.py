"""Folders for `transformers`: its built-in `rwkv` (RWKV-4), and the remote code of the models `rwkv5` and `rwkv6`."""

from bert4keras_rwkv.weights.dialects.hf import HF, VERSIONS, WRITES
from bert4keras_rwkv.weights.formats.foreign_folder import write_folder
from bert4keras_rwkv.weights.formats.registry import Format


def config_keys(config):
    """The keys of their `config.json`."""
    keys = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "attention_hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "rescale_every": 6,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if config.model == "rwkv4":
        own = {"model_type": "rwkv", "architectures": ["RwkvForCausalLM"], "context_length": 1024}
        return {**keys, **own, "intermediate_size": config.intermediate_size}
    return {
        **keys,
        "model_type": config.model,
        "architectures": [f"{config.model.capitalize()}ForCausalLM"],
        "intermediate_size": None,  # their class computes it
        "head_size": config.attention_head_size,
        "head_size_divisor": _plain((config.group_norm_epsilon / 1e-5) ** 0.5),  # epsilon = 1e-5 * divisor ** 2
    }


def _plain(number):
    """A whole number as an int."""
    return round(number) if abs(number - round(number)) < 1e-9 else number


def _write(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_folder(path, HF.write(tensors, config), config_keys(config), dtype, tokenizer, progress)


FORMAT = Format(
    "hf",
    "Hugging Face folder",
    VERSIONS,
    suffix=None,
    write=_write,
    writes=WRITES,
    dialect=HF,
    vocabulary=True,
)
