"""Hugging Face: `rwkv` of transformers (RWKV-4), and the remote code of RWKV's `rwkv5` and `rwkv6` models."""

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights.formats.foreign import Dialect, for_each_channel, without_state, write_folder
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, derived, officially_named, vector

# Parts of names, theirs first. The shapes are official ones.
PARTS = (
    ("rwkv.embeddings.", "emb."),
    ("rwkv.ln_out.", "ln_out."),
    ("rwkv.blocks.", "blocks."),
    (".pre_ln.", ".ln0."),
    (".attention.", ".att."),
    (".feed_forward.", ".ffn."),
    (".time_mix_key", ".time_mix_k"),
    (".time_mix_value", ".time_mix_v"),
    (".time_mix_receptance", ".time_mix_r"),
    (".time_mix_gate", ".time_mix_g"),
)
VERSIONS = ("4", "5", "6")
WRITES = ("4", "5.1", "5.2", "6")


def _speaks(shapes):
    return "rwkv.embeddings.weight" in shapes


def _read(tensors):
    """Renamed. RWKV-6's decay is [1, 1, C] in released files and [H, N] where their class made it."""
    entries = officially_named({_renamed(name, PARTS): tensors.entry(name) for name in tensors})
    for name, entry in entries.items():
        if name.endswith(".time_decay") and f"{name}_w1" in entries and len(entry.shape) == 2:
            entries[name] = derived(vector, entry)
    return Tensors(entries, tensors.metadata, tensors.close)


def _write(tensors, config):
    check(config)
    back = [(official, theirs) for theirs, official in PARTS]
    entries = without_state(tensors, "no class of Hugging Face holds")
    if config.variant == "5.1":
        entries = for_each_channel(entries, config.attention_head_size)
    renamed = {_renamed(name, back): entry for name, entry in entries.items()}
    return Tensors(renamed, tensors.metadata, tensors.close)


def check(config):
    """Raise `WeightsError` for a model that their classes, which fix some sizes, could not load."""
    if config.model == "rwkv7":
        raise WeightsError("Hugging Face's remote code ends with RWKV-6. Write RWKV-7 for fla: `--to fla`.")
    if config.variant == "5.0":
        raise WeightsError(
            "RWKV-5.0 has no gate, and the rwkv5 class of Hugging Face always has one, so this model cannot be said "
            "there. RWKV-5.1 and 5.2 can."
        )
    if config.model == "rwkv4":
        return
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "attention_head_size")
    fixed = RWKVConfig.from_dict({"model": config.model, **{name: getattr(config, name) for name in sizes}})
    names = ("intermediate_size", "decomposer_size", "time_decay_size")
    wrong = [name for name in names if getattr(fixed, name) != getattr(config, name)]
    if wrong:
        told = ", ".join(f"{name} {getattr(fixed, name)} (this model has {getattr(config, name)})" for name in wrong)
        raise WeightsError(
            f"The {config.model} class of Hugging Face fixes some sizes for a hidden size of {config.hidden_size}: "
            f"{told}. It could not load this model."
        )


def _renamed(name, parts):
    """`name` with every part that has another name replaced."""
    for old, new in parts:
        name = name.replace(old, new)
    return name


HF = Dialect(_speaks, _read, _write)


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


def _write_folder(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    write_folder(path, HF.write(tensors, config), config_keys(config), dtype, tokenizer, progress)


FORMAT = Format(
    "hf",
    "Hugging Face folder",
    VERSIONS,
    suffix=None,
    write=_write_folder,
    writes=WRITES,
    dialect=HF,
    vocabulary=True,
)
