"""flash-linear-attention, which `transformers` loads once `fla` is imported: RWKV-6 and RWKV-7.

Their tables have several official tensors in one of theirs. Vectors are [C], low-rank factors Linear weights [out, in],
and RWKV-6's five mixed inputs come in the order r, w, k, v, g. github.com/fla-org/flash-linear-attention,
fla/layers/rwkv6.py and rwkv7.py.
"""

from bert4keras_rwkv.versions.table import STACK, VECTOR, Rule, Transform
from bert4keras_rwkv.weights.formats.foreign import TURNED, Dialect, layers_of, without_state, write_folder
from bert4keras_rwkv.weights.formats.registry import Format
from bert4keras_rwkv.weights.loading import export, to_variables
from bert4keras_rwkv.weights.tensors import Tensors, WeightsError, official_name

VERSIONS = ("6", "7")
MIXED = "rwkvg"  # their order
OFFICIAL_MIXED = "wkvrg"
INTO, BACK = ([a.index(letter) for letter in b] for a, b in ((OFFICIAL_MIXED, MIXED), (MIXED, OFFICIAL_MIXED)))


def _reordered(parts, order):
    """The five parts side by side along the first axis, in another order."""
    return parts.reshape(len(order), -1, *parts.shape[1:])[order].reshape(parts.shape)


# time_maa_w1 [C, 5D] to a Linear weight [5D, C], and time_maa_w2 [5, D, C] to one [C, 5D].
FIRST = Transform(load=lambda array: _reordered(array.T, INTO), save=lambda array: _reordered(array, BACK).T)
SECOND = Transform(
    load=lambda array: array[INTO].reshape(-1, array.shape[-1]).T,
    save=lambda array: array.T.reshape(len(MIXED), -1, array.shape[0])[BACK],
)


def rules(version, layers, value_layers=()):
    """The table of a model: `Rule(official names, their name, transform)`. value_layers: those with a `v_lora`."""
    table = [Rule("emb.weight", "model.embeddings.weight")]
    for i in range(layers):
        norms = {"ln1": "attn_norm", "ln2": "ffn_norm"} | ({"ln0": "pre_norm"} if i == 0 else {})
        mixers = [rule for official, theirs in norms.items() for rule in _norm(official, theirs)]
        mixers += _mixers_6() if version == "6" else _mixers_7(i in value_layers)
        table += [_inside(i, rule) for rule in mixers]
    return [*table, *_norm("ln_out", "model.norm"), Rule("head.weight", "lm_head.weight")]


def _mixers_6():
    linear = {"receptance": "r", "key": "k", "value": "v", "gate": "g"}
    return [
        Rule("att.time_maa_x", "attn.x_proj.0.mu", VECTOR),
        Rule(tuple(f"att.time_maa_{letter}" for letter in MIXED), "attn.x_bias", STACK),
        Rule("att.time_maa_w1", "attn.x_proj.0.linear.weight", FIRST),
        Rule("att.time_maa_w2", "attn.x_proj.2.weight", SECOND),
        Rule("att.time_decay", "attn.w_proj.linear.lora.2.bias", VECTOR),
        Rule("att.time_decay_w1", "attn.w_proj.linear.lora.0.weight", TURNED),
        Rule("att.time_decay_w2", "attn.w_proj.linear.lora.2.weight", TURNED),
        Rule("att.time_faaaa", "attn.bonus"),
        *(Rule(f"att.{name}.weight", f"attn.{letter}_proj.linear.weight") for name, letter in linear.items()),
        Rule("att.output.weight", "attn.o_proj.weight"),
        *_norm("att.ln_x", "attn.g_norm"),
        Rule("ffn.time_maa_k", "ffn.key.mu", VECTOR),
        Rule("ffn.time_maa_r", "ffn.receptance.mu", VECTOR),
        Rule("ffn.key.weight", "ffn.key.linear.weight"),
        Rule("ffn.receptance.weight", "ffn.receptance.linear.weight"),
        Rule("ffn.value.weight", "ffn.value.weight"),
    ]


def _mixers_7(value):
    table = [Rule(f"att.x_{letter}", f"attn.x_{letter}") for letter in "rwkvag"]
    for letter in "wavg" if value else "wag":
        table += [
            Rule(f"att.{letter}1", f"attn.{letter}_lora.lora.0.weight", TURNED),
            Rule(f"att.{letter}2", f"attn.{letter}_lora.lora.2.weight", TURNED),
        ]
        if letter != "g":
            table.append(Rule(f"att.{letter}0", f"attn.{letter}_lora.lora.2.bias", VECTOR))
    linear = {"receptance": "r", "key": "k", "value": "v", "output": "o"}
    return [
        *table,
        Rule("att.k_k", "attn.k_k", VECTOR),
        Rule("att.k_a", "attn.k_a", VECTOR),
        Rule("att.r_k", "attn.r_k"),
        *(Rule(f"att.{name}.weight", f"attn.{letter}_proj.weight") for name, letter in linear.items()),
        *_norm("att.ln_x", "attn.g_norm"),
        Rule("ffn.x_k", "ffn.x_k", VECTOR),
        Rule("ffn.key.weight", "ffn.key.weight"),
        Rule("ffn.value.weight", "ffn.value.weight"),
    ]


def _norm(official, theirs):
    return [Rule(f"{official}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def _inside(i, rule):
    """The rule of a layer as that of a model."""
    return Rule(tuple(f"blocks.{i}.{name}" for name in rule.names), f"model.layers.{i}.{rule.path}", rule.transform)


def _speaks(shapes):
    return "layers.0.attn_norm.weight" in shapes and "embeddings.weight" in shapes


def _read(tensors):
    """Their tensors under official names. Missing or extra ones are a `WeightsError` with all of them."""
    entries = _unpacked({official_name(name): tensors.entry(name) for name in tensors})
    version = "7" if "layers.0.attn.r_k" in entries else "6"
    layers = layers_of(entries, "layers.")
    table = rules(version, layers, [i for i in range(layers) if f"layers.{i}.attn.v_lora.lora.0.weight" in entries])
    wanted = {official_name(rule.path) for rule in table}
    missing, extra = sorted(wanted - set(entries)), sorted(set(entries) - wanted)
    if missing or extra:
        lines = [f"'{name}' is missing" for name in missing] + [f"'{name}' has no place" for name in extra]
        raise WeightsError(f"Not a whole RWKV-{version} of fla:\n  " + "\n  ".join(lines[:20]))
    try:
        official = export(table, lambda path: entries[official_name(path)])
    except (ValueError, IndexError) as error:
        raise WeightsError(f"Not an RWKV-{version} of fla, a tensor has an impossible shape: {error}.") from error
    return Tensors(official.entries(), tensors.metadata, tensors.close)


def _unpacked(entries):
    """Old files of RWKV-7 hold its six mixes in one `attn.x_x` [6, C], in the order r, w, k, v, a, g."""
    result = {}
    for name, entry in entries.items():
        if name.endswith(".attn.x_x"):
            table = [Rule(tuple(f"{name[:-1]}{letter}" for letter in "rwkvag"), "x", STACK)]
            result |= export(table, lambda _, entry=entry: entry).entries()
        else:
            result[name] = entry
    return result


def _write(tensors, config):
    version = config.model.removeprefix("rwkv")
    if version not in VERSIONS:
        raise WeightsError(f"fla has RWKV-6 and RWKV-7. This is an {config.model}.")
    entries = without_state(tensors, "no class of fla holds")
    unused = {f"blocks.0.att.v{number}" for number in "012"}  # layer 0 has no value to mix in
    entries = {name: entry for name, entry in entries.items() if name not in unused}
    layers = config.num_hidden_layers
    table = rules(version, layers, range(1, layers))
    return Tensors(to_variables(table, Tensors(entries)).entries(), tensors.metadata, tensors.close)


FLA = Dialect(_speaks, _read, _write)


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


def _write_folder(path, tensors, config, dtype=None, tokenizer=None, progress=None):
    named, keys = FLA.write(tensors, config), config_keys(config)
    texts = {}
    if config.model == "rwkv6" and keys["norm_eps"] != config.group_norm_epsilon:
        said = {"model": config.model, "norm_eps": keys["norm_eps"], "epsilon": config.group_norm_epsilon}
        texts = {"README.md": README.format(**said)}
    write_folder(path, named, keys, dtype, tokenizer, progress, texts)


FORMAT = Format(
    "fla", "flash-linear-attention folder", VERSIONS, suffix=None, write=_write_folder, dialect=FLA, vocabulary=True
)
