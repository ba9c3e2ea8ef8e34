"""A plan says in bytes what the weights take once they are loaded, and whether there is room for them."""

import json
import logging

import pytest

from bert4keras_rwkv.models import RWKV, plan
from bert4keras_rwkv.ops import devices
from bert4keras_rwkv.strategy import Strategy
from tests.models.small import small_model

STRATEGIES = ("cpu fp32", "cpu fp32i8", "cpu bf16i4 *1 -> cpu fp16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small RWKV-7 of 5 blocks, as a preset."""
    path = tmp_path_factory.mktemp("plan") / "model"
    small_model("7", num_hidden_layers=5).save_to_preset(path)
    return path


def taken(*layers):
    return sum(v.value.nbytes for layer in layers for v in layer.variables)


@pytest.mark.on("torch")
@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_it_counts_what_is_loaded(version, tmp_path):
    small_model(version).save_to_preset(tmp_path / "model")
    for strategy in STRATEGIES:
        network = RWKV.from_preset(tmp_path / "model", strategy=strategy).backbone
        found = RWKV.plan(tmp_path / "model", strategy)
        parts = [(network.embed, network.ln0), *([block] for block in network.blocks), (network.ln_out, network.head)]
        assert [row.bytes for row in found.rows] == [taken(*part) for part in parts]
        assert found.needed() == {"cpu:0": taken(network)}


@pytest.mark.backend_free
def test_it_is_a_table(folder):
    found = RWKV.plan(folder, "cpu fp32i8 *3 -> cpu bf16")
    first, second, third, last, head = (found.rows[i].bytes for i in (0, 1, 2, 4, -1))
    lines = [line.split() for line in str(found).splitlines()]
    assert lines[0] == ["'cpu", "fp32i8", "*3", "->", "cpu", "bf16'", "for", "rwkv7,", "5", "blocks", "of", "16"]
    assert lines[1] == ["block", "device", "dtype", "bytes"]
    assert lines[2:7] == [
        ["embedding", "cpu:0", "float32", f"{first:,}"],
        ["0", "cpu:0", "float32,", "int8", f"{second:,}"],
        ["1", "to", "2", "cpu:0", "float32,", "int8", "2", "times", f"{third:,}"],
        ["3", "to", "4", "cpu:0", "bfloat16", "2", "times", f"{last:,}"],
        ["head", "cpu:0", "bfloat16", f"{head:,}"],
    ]
    assert lines[7][:3] == ["sum", "cpu:0", f"{sum(row.bytes for row in found.rows):,}"]
    assert json.loads(json.dumps(found.to_dict()))["needed_bytes"] == found.needed()


@pytest.mark.on("jax")
def test_it_says_that_the_embedding_stays_in_bfloat16(tmp_path):
    """Beside packed matrices, where the file has it so; with none it is float32 as all."""
    small_model("7", dtype="bfloat16").save_to_preset(tmp_path / "model")
    for strategy, dtype in (("cpu fp32i8", "bfloat16"), ("cpu fp32", "float32"), ("cpu fp16i8", "float16")):
        assert RWKV.plan(tmp_path / "model", strategy).rows[0].place.dtype == dtype


@pytest.mark.backend_free
def test_what_is_streamed_lies_in_host_memory(folder):
    """And two blocks at a time on the device, which need not be here to be planned for."""
    found = RWKV.plan(folder, "cuda fp16i8 *1+")
    embedding, *blocks, head = (row.bytes for row in found.rows)
    assert found.needed() == {
        "cuda:0": embedding + blocks[0] + head + max(blocks[1] + blocks[2], blocks[3] + blocks[4]),
        "cpu:0": sum(blocks[1:]),
    }
    assert "1 to 4     cuda:0, streamed  float16, int8" in str(found)
    none_stays = RWKV.plan(folder, "cuda fp16i8 *0+")
    assert none_stays.needed()["cpu:0"] == embedding + sum(blocks)


@pytest.mark.backend_free
def test_an_impossible_plan_says_why_in_bytes(folder, monkeypatch):
    found = RWKV.plan(folder, "cuda:99 fp16")
    assert any(problem.startswith("There is no device 'cuda:99' here.") for problem in found.problems())
    needed = RWKV.plan(folder, "cpu fp32").needed()["cpu:0"]
    monkeypatch.setattr(devices, "free_memory", lambda name: 10_000)
    told = f"take {needed:,} bytes and 10,000 are free, {needed - 10_000:,} too few"
    assert told in str(RWKV.plan(folder, "cpu fp32"))
    with pytest.raises(ValueError, match=told):
        RWKV.from_preset(folder, strategy="cpu fp32")


@pytest.mark.backend_free
def test_auto_takes_the_best_that_fits(folder, monkeypatch, caplog):
    """On a processor, and on a GPU that is made up."""
    kinds = ("cpu fp32", "cpu bf16", "cpu fp32i8", "cpu fp32i4")
    needs = {kind: RWKV.plan(folder, kind).needed()["cpu:0"] for kind in kinds}

    def chosen(room):
        monkeypatch.setattr(devices, "free_memory", lambda name: room.get(name))
        return str(RWKV.plan(folder, "auto").strategy)

    for kind in sorted(needs, key=needs.get, reverse=True):
        fits = [other for other in kinds if needs[other] <= needs[kind]]
        assert chosen({"cpu:0": needs[kind] / plan.ROOM}) == fits[0]
    with pytest.raises(ValueError, match="No strategy fits this machine: the least, 'cpu fp32i4', needs"):
        chosen({"cpu:0": min(needs.values())})
    with caplog.at_level(logging.WARNING):
        assert chosen({}) == "cpu fp32"
    assert "The strategy 'auto' is 'cpu fp32' here." in caplog.text

    monkeypatch.setattr(devices, "names", lambda: ("cpu:0", "cuda:0"))
    monkeypatch.setattr(devices, "default", lambda: "cuda:0")
    assert chosen({"cuda:0": 10**9}) == "cuda:0 fp32"
    streamed = RWKV.plan(folder, Strategy.of("cuda:0 bf16i4 *1+")).needed()["cuda:0"]
    assert chosen({"cuda:0": streamed / plan.ROOM}) == "cuda:0 bf16i4 *1+"
