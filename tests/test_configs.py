"""The configs of released sizes: they say what the files say, and have the parameters that were published."""

import json
import math
from pathlib import Path

import pytest

from bert4keras_rwkv.config import RWKVConfig
from tests.official import official_shapes

pytestmark = pytest.mark.backend_free

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# The papers print parameters of RWKV-4 (arXiv 2305.13048, table 2), 5 and 6 (2404.05892, table 1) and 7 (2503.14456,
# table 1) with so many digits. The last two of RWKV-7 are only known by their names.
PUBLISHED = {
    "rwkv4-pile-169M": "1.693e8",
    "rwkv4-pile-430M": "4.304e8",
    "rwkv4-pile-1B5": "1.515e9",
    "rwkv4-pile-3B": "2.985e9",
    "rwkv4-pile-7B": "7.393e9",
    "rwkv4-pile-14B": "1.415e10",
    "rwkv5-0B4": "4.62e8",
    "rwkv5-1B5": "1.58e9",
    "rwkv5-3B": "3.06e9",
    "rwkv5-7B": "7.52e9",
    "rwkv6-1B6": "1.60e9",
    "rwkv6-3B": "3.10e9",
    "rwkv7-0B1": "1.91034624e8",
    "rwkv7-0B4": "4.50767872e8",
    "rwkv7-1B5": "1.527404544e9",
    "rwkv7-2B9": "2.947735040e9",
    "rwkv7-7B2": "7.2e9",
    "rwkv7-13B3": "1.33e10",
}
# Of the others only the name says how many: so many whole units of its last digit.
NAMED = {
    "rwkv4-world-0B1": "0.1e9",
    "rwkv4-world-0B4": "0.4e9",
    "rwkv4-world-1B5": "1.5e9",
    "rwkv4-world-3B": "3e9",
    "rwkv4-world-7B": "7e9",
    "rwkv5-0B1": "0.1e9",
    "rwkv6-7B": "7e9",
    "rwkv6-14B": "14e9",
}


def files():
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def shapes(config):
    """The shapes that a released file of this size has, without RWKV-7's unused value residual of the first block."""
    c = config
    version = {"rwkv4": "4", "rwkv5": c.variant, "rwkv6": "6", "rwkv7": "7"}[c.model]
    ranks = (c.decomposer_size, c.time_decay_size)
    if version == "7":
        ranks = (c.decay_low_rank_dim, c.a_low_rank_dim, c.v_low_rank_dim, c.gate_low_rank_dim)
    heads, head_size = (c.num_attention_heads, c.attention_head_size) if version != "4" else (1, c.hidden_size)
    name = version + (" time_first" if c.exponential_bonus else "")
    return official_shapes(name, c.num_hidden_layers, heads, head_size, c.vocab_size, c.intermediate_size, ranks)


def digit(text):
    """What one unit of the last printed digit of '1.693e8' is worth."""
    mantissa, exponent = text.split("e")
    return 10.0 ** (int(exponent) - len(mantissa.partition(".")[2]))


def test_every_config_has_its_count():
    assert files() == sorted([*PUBLISHED, *NAMED])


@pytest.mark.parametrize("name", files())
def test_a_config_says_what_its_file_would(name):
    """Version and sizes, derived from names and shapes alone."""
    config = RWKVConfig.from_json(CONFIGS / f"{name}.json")
    assert RWKVConfig.from_shapes(shapes(config)) == config


@pytest.mark.parametrize("name", files())
def test_parameters(name):
    """Published counts are met to the last digit printed; names leave off what is beyond theirs."""
    count = sum(map(math.prod, shapes(RWKVConfig.from_json(CONFIGS / f"{name}.json")).values()))
    if name in PUBLISHED:
        assert abs(count - float(PUBLISHED[name])) <= digit(PUBLISHED[name]) / 2
    else:
        assert 0 <= count - float(NAMED[name]) < digit(NAMED[name])


@pytest.mark.parametrize("name", files())
def test_what_is_unverified_is_a_key(name):
    keys = json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))
    unverified = keys.pop("unverified", [])
    assert set(unverified) <= set(keys) and len(set(unverified)) == len(unverified)
    assert keys.items() <= RWKVConfig.from_dict(keys).to_dict().items()
