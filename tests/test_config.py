"""The config says what a model is, whatever spelling it comes in, and refuses what it does not understand."""

import json

import pytest

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.versions import version_of
from tests.official import VERSIONS, official_weights

pytestmark = pytest.mark.backend_free

KEYS = {
    "vocab_size": 96,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_head_size": 64,
    "intermediate_size": 448,
    "decomposer_size": 32,
    "time_decay_size": 64,
}
PLAIN = {
    "emb.weight": (32, 8),
    "head.weight": (32, 8),
    "blocks.0.ffn.key.weight": (24, 8),
    "blocks.0.att.key.weight": (8, 8),
}


def shapes_6(layers=1, heads=2, head_size=4, rank=3, decay_rank=5, ffn=24):
    """The shapes that tell the sizes of an RWKV-6."""
    width = heads * head_size
    shapes = {"emb.weight": (32, width), "head.weight": (32, width)}
    for i in range(layers):
        shapes |= {
            f"blocks.{i}.att.time_maa_x": (1, 1, width),
            f"blocks.{i}.att.time_maa_w1": (width, 5 * rank),
            f"blocks.{i}.att.time_decay_w1": (width, decay_rank),
            f"blocks.{i}.att.time_faaaa": (heads, head_size),
            f"blocks.{i}.att.key.weight": (width, width),
            f"blocks.{i}.att.ln_x.weight": (width,),
            f"blocks.{i}.ffn.key.weight": (ffn, width),
        }
    return shapes


def test_keys_of_bert4keras():
    """A config.json of bert4keras3 names no model; its two ranks say that it is an RWKV-6."""
    config = RWKVConfig.from_dict(KEYS)
    assert config.to_dict() == {**KEYS, "model": "rwkv6", "group_norm_epsilon": 64e-5, "layer_norm_epsilon": 1e-5}


def test_keys_that_say_nothing_about_an_rwkv():
    """A config.json of bert4keras3 may hold those of its other models; what would change training is refused."""
    others = {"hidden_act": "relu", "initializer_range": 0.02, "type_vocab_size": 2, "max_position_embeddings": 512}
    others |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1, "embedding_size": KEYS["hidden_size"]}
    assert RWKVConfig.from_dict({**KEYS, **others}) == RWKVConfig.from_dict(KEYS)
    for name in ("dropout_rate", "hidden_dropout_prob"):
        with pytest.raises(ValueError, match=f"no dropout. Received: {name}=0.1. Set it to 0"):
            RWKVConfig.from_dict({**KEYS, name: 0.1})


def test_there_and_back(tmp_path):
    config = RWKVConfig.from_dict({**KEYS, "group_norm_epsilon": 1e-5})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert RWKVConfig.from_json(path) == config


def test_keys_of_hugging_face():
    """Their `num_attention_heads` is a head size, their `intermediate_size` is null, much else means nothing here."""
    config = RWKVConfig.from_dict(
        {
            "model_type": "rwkv6",
            "architectures": ["Rwkv6ForCausalLM"],
            "vocab_size": 65536,
            "hidden_size": 2048,
            "attention_hidden_size": 2048,
            "num_attention_heads": 64,
            "head_size": 64,
            "head_size_divisor": 8,
            "intermediate_size": None,
            "num_hidden_layers": 24,
            "rescale_every": 6,
            "tie_word_embeddings": False,
            "use_cache": True,
        }
    )
    assert (config.num_attention_heads, config.attention_head_size, config.intermediate_size) == (32, 64, 7168)
    assert config.group_norm_epsilon == pytest.approx(64e-5)


@pytest.mark.parametrize("size", [(1, 1, 8, 1, 1), (3, 8, 1, 1, 7), (12, 2, 4, 64, 128)])
def test_sizes_from_shapes(size):
    """One head, heads of one, ranks of one: nothing is squeezed away or guessed."""
    layers, heads, head_size, rank, decay_rank = size
    config = RWKVConfig.from_shapes(shapes_6(layers, heads, head_size, rank, decay_rank, ffn=13))
    assert (config.num_hidden_layers, config.num_attention_heads, config.attention_head_size) == size[:3]
    assert (config.decomposer_size, config.time_decay_size, config.intermediate_size) == (rank, decay_rank, 13)
    assert (config.model, config.vocab_size) == ("rwkv6", 32)


@pytest.mark.parametrize(
    "extra, version",
    [
        ({}, "4"),
        ({"ln_x.weight": (8,), "time_decay": (2,)}, "5.0"),
        ({"ln_x.weight": (8,), "time_decay": (2,), "gate.weight": (8, 8)}, "5.1"),
        ({"ln_x.weight": (8,), "time_decay": (2, 4), "gate.weight": (8, 8)}, "5.2"),
        ({"ln_x.weight": (8,), "time_maa_x": (1, 1, 8)}, "6"),
        ({"ln_x.weight": (8,), "r_k": (2, 4)}, "7"),
    ],
)
def test_versions_told_by_names(extra, version):
    assert version_of(PLAIN | {f"blocks.0.att.{name}": shape for name, shape in extra.items()})[1] == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", [(1, 1, 8), (2, 8, 1), (3, 2, 4)])
def test_sizes_of_every_version(version, sizes, rng):
    """From the shapes of a file: heads and ranks of one too."""
    layers, heads, head_size = sizes
    arrays = official_weights(version, rng, layers, heads, head_size, ffn=13, ranks=(1, 3, 2, 5))
    config = RWKVConfig.from_shapes({name: array.shape for name, array in arrays.items()})
    said = config.to_dict()
    assert (said["model"], said["num_hidden_layers"], said["intermediate_size"]) == (f"rwkv{version[0]}", layers, 13)
    if version != "4":
        assert (said["num_attention_heads"], said["attention_head_size"]) == (heads, head_size)
    own = {
        "5": {"exponential_bonus": version.endswith("time_first"), "variant": version[:3]},
        "6": {"decomposer_size": 1, "time_decay_size": 3},
        "7": {"decay_low_rank_dim": 1, "a_low_rank_dim": 3, "gate_low_rank_dim": 5}
        | ({"v_low_rank_dim": 2} if layers > 1 else {}),
    }
    assert said.items() >= own.get(version[0], {}).items()
    assert RWKVConfig.from_dict(said) == config


def test_keys_of_another_version_are_refused():
    with pytest.raises(ValueError, match=r"An rwkv6 has no decay_low_rank_dim\. Its own keys: num_attention_heads"):
        RWKVConfig.from_dict({**KEYS, "decay_low_rank_dim": 64})
    with pytest.raises(ValueError, match="Missing config keys of an rwkv7: a_low_rank_dim, attention_head_size"):
        RWKVConfig(model="rwkv7", vocab_size=8, hidden_size=8, num_hidden_layers=1, intermediate_size=8)


@pytest.mark.parametrize(
    "width, ranks", [(768, (64, 64, 32, 128)), (1024, (64, 64, 32, 128)), (2048, (96, 96, 64, 256))]
)
def test_ranks_of_released_sizes(width, ranks):
    config = RWKVConfig.from_dict(
        {"model": "rwkv7", "hidden_size": width, "num_hidden_layers": 2, "vocab_size": 65536, "head_size": 64}
    )
    assert (config.decay_low_rank_dim, config.a_low_rank_dim, config.v_low_rank_dim) == ranks[:3]
    assert (config.gate_low_rank_dim, config.intermediate_size) == (ranks[3], 4 * width)


@pytest.mark.parametrize(
    "name, relative",
    [
        ("blocks.0.att.gate_w1", "x060a"),
        ("blocks.0.att.time_maa_rkvw_w1", "x060b or x060c"),
        ("blocks.1.tiny_q.weight", "4a or 4b"),
        ("blocks.0.ffn.s_emb.weight", "DeepEmbed"),
        ("blocks.0.qkv.qq.weight", "DEA"),
        ("blocks.0.rosa_emb.weight", "ROSA"),
        ("blocks.0.ffnPre.key.weight", "channel mix before"),
    ],
)
def test_relatives_are_refused_by_name(name, relative):
    with pytest.raises(ValueError, match=relative):
        RWKVConfig.from_shapes(shapes_6() | {name: (8, 8)})


@pytest.mark.parametrize("names", [{}, {"transformer.h.0.weight": (3, 3)}, {"blocks.0.att.time_state": (2, 4, 4)}])
def test_other_files_are_no_model(names):
    with pytest.raises(ValueError, match=r"not the weights of an RWKV model: 'emb\.weight' is missing"):
        RWKVConfig.from_shapes(names)


def test_a_converted_file_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="converted by the `rwkv` package"):
        RWKVConfig.from_shapes(shapes_6() | {"_strategy": ()})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 2, "colour": "red"}, "Unknown config keys: colour, layers. Known: model, vocab_size"),
        ({"num_attention_heads": 3}, "num_attention_heads \\* attention_head_size"),
        ({"vocab_size": 0}, "`vocab_size` is a positive whole number"),
        ({"num_hidden_layers": 2.0}, "`num_hidden_layers` is a positive whole number"),
        ({"num_hidden_layers": 10**8}, "A model has at most 1000 layers"),
        ({"num_hidden_layers": None}, "Missing config keys: num_hidden_layers"),
        ({"group_norm_epsilon": 0}, "`group_norm_epsilon` is a positive number"),
        ({"layer_norm_epsilon": 10**400}, "`layer_norm_epsilon` is a positive number"),
        ({"model": "rwkv5"}, "An rwkv5 has no decomposer_size, time_decay_size"),
        ({"model": "bert"}, "'bert' is not known. Known: 'rwkv4', 'rwkv5'"),
        ({"attention_hidden_size": 64}, "`attention_hidden_size` must equal"),
        ({"tie_word_embeddings": True}, "output matrix"),
    ],
)
def test_bad_keys_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RWKVConfig.from_dict({**KEYS, **change})


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\xff"])
def test_a_file_that_is_no_config(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        RWKVConfig.from_json(path)


def test_attention_of_another_width_is_refused():
    with pytest.raises(ValueError, match="attention 16, hidden size 8"):
        RWKVConfig.from_shapes(shapes_6() | {"blocks.0.att.key.weight": (16, 8)})
