"""Folders for flash-linear-attention, which `transformers` loads once `fla` is imported: RWKV-6 and RWKV-7."""

from bert4keras_rwkv.weights.dialects.fla import FLA, VERSIONS
from bert4keras_rwkv.weights.formats.foreign_folder import write_folder
from bert4keras_rwkv.weights.formats.registry import Format

README = """# {model} for flash-linear-attention

fla normalises the heads with `norm_eps` ({norm_eps}), and this model was made for {epsilon}, which its `config.json`
cannot say. After loading:

    for layer in model.model.layers:
        layer.attn.g_norm.eps = {epsilon}
"""


def config_keys(config):
    """The keys of their `config.json`.

    RWKV-7 there normalises heads with head_dim * norm_eps, so `norm_eps` is chosen for the epsilon to be ours. RWKV-6
    uses `norm_eps` as it is for every norm; a README says what to set.
    """
    six = config.model == "rwkv6"
    keys = {
        "model_type": config.model,
        "architectures": [f"{config.model.upper()}ForCausalLM"],
        "attn_mode": "chunk",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "intermediate_size": config.intermediate_size,
        "hidden_ratio": config.intermediate_size / config.hidden_size,
        "hidden_act": "sqrelu",
        "num_heads": config.num_attention_heads,
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": config.layer_norm_epsilon if six else config.group_norm_epsilon / config.attention_head_size,
        "fuse_norm": True,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if six:
        ranks = {"proj_low_rank_dim": config.decomposer_size, "gate_low_rank_dim": config.time_decay_size}
        return {**keys, **ranks, "expand_k": 1.0, "expand_v": 1.0}
    ranks = ("decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim")
    return {
        **keys,
        **{name: getattr(config, name) for name in ranks},
        "head_dim": config.attention_head_size,
        "value_dim": [config.hidden_size] * config.num_hidden_layers,
    }


def _write(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    named, keys = FLA.write(tensors, config), config_keys(config)
    texts = {}
    if config.model == "rwkv6" and keys["norm_eps"] != config.group_norm_epsilon:
        said = {"model": config.model, "norm_eps": keys["norm_eps"], "epsilon": config.group_norm_epsilon}
        texts = {"README.md": README.format(**said)}
    write_folder(path, named, keys, dtype, tokenizer, progress, texts)


FORMAT = Format(
    "fla", "flash-linear-attention folder", VERSIONS, suffix=None, write=_write, dialect=FLA, vocabulary=True
)
