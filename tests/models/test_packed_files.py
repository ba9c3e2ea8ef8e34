"""Files that hold packed matrices: presets of quantised models, and GGUF files whose blocks are kept."""

import json
import logging
import math
import resource

import h5py
import numpy as np
import pytest

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.keras_loader import keras, ops
from bert4keras_rwkv.layers.projection import scheme_of
from bert4keras_rwkv.models import RWKV, build, build_transformer_model
from bert4keras_rwkv.models.lora import adapted
from bert4keras_rwkv.models.quantization import Quantization, projections
from bert4keras_rwkv.packing import Scheme
from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth
from bert4keras_rwkv.weights.formats.llama_cpp.write import write_gguf
from tests.models.small import small_model

IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
MIXED = Quantization(Scheme(4, least=False), None, skip=("value",))
WIDE = {"hidden_size": 64, "attention_head_size": 32, "num_attention_heads": 2, "intermediate_size": 96}


def numbers(rwkv):
    """Path -> the kernel of each projection, as it is computed with."""
    return {path: ops.convert_to_numpy(layer.kernel) for path, layer in projections(rwkv.backbone).items()}


def schemes(rwkv):
    return {path: scheme_of(layer) for path, layer in projections(rwkv.backbone).items()}


def logits(rwkv, ids=IDS):
    return ops.convert_to_numpy(ops.stop_gradient(rwkv.forward(np.array(ids))[0]))


@pytest.fixture
def preset(tmp_path):
    """The folder of a small model in int4, and the model."""
    rwkv = small_model("7")
    rwkv.quantize("int4")
    rwkv.save_to_preset(tmp_path / "preset")
    return tmp_path / "preset", rwkv


@pytest.mark.parametrize("how", ["bfloat16", "int8", "int4", MIXED], ids=str)
@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.on("torch")
def test_a_preset_is_the_model(how, version, tmp_path):
    """Bit for bit, and written again it is the same file; no quantization is asked for."""
    rwkv = small_model(version)
    rwkv.quantize(how)
    rwkv.save_to_preset(tmp_path / "preset")
    again = RWKV.from_preset(tmp_path / "preset")
    assert schemes(again) == schemes(rwkv)
    np.testing.assert_array_equal(logits(again), logits(rwkv))
    again.save_to_preset(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "preset/config.json").read_bytes()
    with open_weights(tmp_path / "preset") as one, open_weights(tmp_path / "again") as other:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_preset_on_this_backend(preset):
    path, rwkv = preset
    np.testing.assert_array_equal(logits(RWKV.from_preset(path)), logits(rwkv))
    model = small_model("7", quantization="int4", return_keras_model=False).model
    model.load_weights(path / "model.weights.h5")  # as Keras would have written it
    np.testing.assert_allclose(ops.convert_to_numpy(ops.stop_gradient(model([IDS]))), logits(rwkv), atol=1e-5)


@pytest.mark.on("torch")
def test_quantising_twice(preset):
    path, rwkv = preset
    with pytest.raises(ValueError, match="Quantising twice rounds twice"):
        RWKV.from_preset(path, quantization="int8")
    for same in ("int4", "keep"):
        np.testing.assert_array_equal(logits(RWKV.from_preset(path, quantization=same)), logits(rwkv))
    with pytest.raises(ValueError, match="'keep' is as a file has its matrices"):
        small_model("7", quantization="keep")
    with pytest.raises(ValueError, match="or None"):
        rwkv.quantize("keep")


@pytest.mark.on("torch")
def test_a_cut_vocabulary(preset):
    """Rows of the head that are kept stay what they are."""
    path, rwkv = preset
    cut = RWKV.from_preset(path, keep_tokens=[0, 5, 7], compound_tokens=[[1, 2]])
    got, wanted = logits(cut, [[1, 2]])[..., :3], logits(rwkv, [[5, 7]])[..., [0, 5, 7]]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.on("torch")
def test_adapters_and_states(preset, tmp_path):
    """They go beside a preset that is quantised; in it a LoRA that adds something has no place."""
    path, _ = preset
    tuned = RWKV.from_preset(path)
    tuned.enable_lora(rank=2)
    tuned.enable_state_tuning()
    tuned.save_to_preset(tmp_path / "nothing added")
    for layer in projections(tuned.backbone).values():
        if layer.lora_enabled:
            layer.lora_kernel_b.assign(ops.ones(layer.lora_kernel_b.shape) * 0.1)
    tuned.save_adapter(tmp_path / "tuned.safetensors")
    with pytest.raises(ValueError, match="`save_adapter`"):
        tuned.save_to_preset(tmp_path / "refused")
    other = RWKV.from_preset(path)
    other.load_adapter(tmp_path / "tuned.safetensors")
    np.testing.assert_array_equal(logits(other), logits(tuned))


@pytest.mark.on("torch")
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model.gguf", "plain", "same"])
def test_converting(preset, name, tmp_path, capsys):
    """Its numbers, in floats; a preset without a dtype stays as it is."""
    path, rwkv = preset
    dtype = [] if name in ("same", "model.pth") else ["--dtype", "float32"]
    assert main(["convert", str(path), str(tmp_path / name), "--check", *dtype]) == 0
    said = capsys.readouterr()
    assert ("int4" in said.err) == (name != "same") and "Checked" in said.out
    again = build_transformer_model(checkpoint_path=tmp_path / name)
    for kernel, other in zip(numbers(rwkv).values(), numbers(again).values(), strict=True):
        np.testing.assert_array_equal(kernel, other)
    assert schemes(again) == (schemes(rwkv) if name == "same" else dict.fromkeys(schemes(rwkv)))


def embedding(rwkv):
    return ops.convert_to_numpy(rwkv.backbone.embed.embeddings)


@pytest.mark.parametrize("version", ["6", "7"])
def test_an_embedding_and_low_ranks_as_the_file_has_them(version, tmp_path, capsys):
    """In bfloat16, where other matrices are packed: the same answers as from a copy in float32, bit for bit, from
    presets, copies and Keras' files too, and the bytes that a plan counted.
    """
    write_pth(tmp_path / "half.pth", small_model(version).weights(), dtype="bfloat16")
    half = build_transformer_model(checkpoint_path=tmp_path / "half.pth", quantization="int8")
    wide = Quantization(Scheme(8), Scheme(8), skip=("embed", "low_rank"))
    full = build_transformer_model(checkpoint_path=tmp_path / "half.pth", quantization=wide)
    assert (str(embedding(half).dtype), str(embedding(full).dtype)) == ("bfloat16", "float32")
    np.testing.assert_array_equal(logits(half), logits(full))
    small_model(version, quantization=wide).model.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="would round"):
        half.model.load_weights(tmp_path / "other.weights.h5")
    half.save_to_preset(tmp_path / "preset")
    assert main(["info", str(tmp_path / "preset"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    halves = [v for v in half.backbone.variables if v.dtype == "bfloat16"]
    assert said["packed"]["bfloat16"] == sum(math.prod(v.shape) for v in halves) > embedding(half).size
    held = sum(np.asarray(ops.convert_to_numpy(v)).nbytes for v in half.backbone.variables)
    assert said["memory_bytes"]["float32"] == held + said["state_bytes"]
    assert sum(row.bytes for row in RWKV.plan(tmp_path / "half.pth", "cpu fp32i8").rows) == held
    half.model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras").get_layer("backbone")
    for network in (RWKV.from_preset(tmp_path / "preset").backbone, copy):
        for variable, wanted in zip(network.variables, half.backbone.variables, strict=True):
            assert (variable.dtype, variable.trainable) == (wanted.dtype, wanted.trainable)
            np.testing.assert_array_equal(*map(ops.convert_to_numpy, (variable, wanted)))


@pytest.mark.on("torch")
def test_an_embedding_in_bfloat16(tmp_path):
    """It is rounded where that is asked for, and where a model in memory has such numbers already; never without."""
    rounded, exact, kept = (small_model("7") for _ in range(3))
    rounded.quantize(Quantization(Scheme(8), None, embedding="bfloat16"))
    exact.backbone.embed.embeddings.assign(embedding(rounded).astype("float32"))
    for rwkv in (exact, kept):
        rwkv.quantize(Quantization(Scheme(8), None))
    np.testing.assert_array_equal(embedding(rounded), embedding(kept).astype(embedding(rounded).dtype))
    assert embedding(exact).dtype == embedding(rounded).dtype != embedding(kept).dtype
    np.testing.assert_array_equal(logits(exact), logits(rounded))
    rounded.enable_lora(rank=2)
    rounded.enable_state_tuning()
    assert not rounded.backbone.embed.trainable_variables
    plain = small_model("7")
    plain.enable_lora(rank=2)
    plain.backbone.embed.embeddings.trainable = True
    plain.save_adapter(tmp_path / "trained.safetensors")
    with pytest.raises(WeightsError, match=r"'embed/embeddings' is .* here quantised"):
        exact.load_adapter(tmp_path / "trained.safetensors")
    with pytest.raises(ValueError, match="quantised already"):
        exact.quantize(Quantization(None, None, embedding="bfloat16"))
    for name in ("embedding", "low_rank"):
        with pytest.raises(ValueError, match=rf"`{name}` is 'bfloat16' or None\. Received: 'int8'"):
            Quantization(None, None, **{name: "int8"})


@pytest.mark.on("torch")
def test_low_rank_matrices_in_bfloat16(tmp_path):
    """All of them or none without being asked: one of zeros, as training begins, is no reason. A LoRA adds to them."""
    rounded, kept = small_model("7"), small_model("7")
    kept.quantize("int8")
    rounded.quantize(Quantization(Scheme(8), Scheme(8), low_rank="bfloat16"))
    halves = [{v.path for v in rwkv.backbone.variables if v.dtype == "bfloat16"} for rwkv in (rounded, kept)]
    assert len(halves[0]) > 10 and all("low_rank" in path for path in halves[0]) and not halves[1]
    before = logits(rounded)
    rounded.enable_lora(rank=2, targets=["decay_low_rank"])
    np.testing.assert_allclose(logits(rounded), before, rtol=1e-5, atol=1e-5)
    for layer in adapted(rounded.backbone).values():
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    tuned = logits(rounded)
    assert np.abs(tuned - before).max() > 1e-3
    rounded.model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras").get_layer("backbone")
    for variable, wanted in zip(copy.variables, rounded.backbone.variables, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (variable, wanted)))
    with pytest.raises(ValueError, match="None has 'low_rank'"):
        small_model("4").quantize(Quantization(Scheme(8), Scheme(8), skip=("low_rank",)))


@pytest.mark.backend_free
def test_what_it_says(preset, capsys):
    path, rwkv = preset
    assert main(["info", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["dtypes"]) == {"int4", "int8", "float32"}
    assert said["dtypes"]["int8"] == np.prod(numbers(rwkv)["head"].shape)
    sizes = [np.asarray(ops.convert_to_numpy(v)).nbytes for v in rwkv.backbone.variables]
    assert said["stored_bytes"] == sum(sizes)
    assert said["packed"] == {
        "int4 in groups of 32 with least values": said["dtypes"]["int4"],
        "int8 in groups of 32": said["dtypes"]["int8"],
    }
    assert said["memory_bytes"]["float32"] == sum(sizes) + said["state_bytes"]
    assert main(["info", str(path)]) == 0
    assert "int4 in groups of 32 with least values" in capsys.readouterr().out


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("packed", lambda array: array[:-1], "time_mix/key"),
        ("scales", lambda array: array[:, :-1], "time_mix/key"),
        ("least", lambda array: array.astype("float32"), "time_mix/key"),
        ("least", None, "nothing at .*time_mix/key/vars/least"),
    ],
)
def test_damaged_tensors(preset, part, change, said):
    path, _ = preset
    with h5py.File(path / "model.weights.h5", "r+") as file:
        group = file["layers/backbone/blocks/block/time_mix/key/vars"]
        array = group[part][()]
        del group[part]
        if change is not None:
            group.create_dataset(part, data=change(array))
    with pytest.raises(WeightsError, match=said):
        RWKV.from_preset(path)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda groups: {}, "otherwise than the 'quantization'"),
        (lambda groups: 5, "list of objects"),
        (lambda groups: [{**groups[0], "bits": 3}], "bits"),
        (lambda groups: [{**groups[0], "bits": "4"}], "whole numbers"),
        (lambda groups: [{**groups[0], "inputs": 1 << 40}], "inputs"),
        (lambda groups: [{**groups[0], "matrices": ["blocks/0/time_mix/bonus"]}], "no matrix of the model"),
        (lambda groups: groups + groups, "named twice"),
        (lambda groups: [{**group, "inputs": 17} for group in groups], "wants"),
    ],
)
def test_damaged_descriptions(preset, change, said):
    path, _ = preset
    keys = json.loads((path / "config.json").read_text())
    keys["quantization"] = change(keys["quantization"])
    (path / "config.json").write_text(json.dumps(keys))
    with pytest.raises(WeightsError, match=said):
        RWKV.from_preset(path)


@pytest.mark.on("torch")
@pytest.mark.parametrize(("kind", "bits"), [("q8_0", 8), ("q4_0", 4), ("q4_1", 4), ("q5_0", 8), ("q5_1", 8)])
@pytest.mark.parametrize("version", ["6", "7"])
def test_blocks_are_kept(kind, bits, version, tmp_path, caplog):
    """The numbers are those of the file, bit for bit, where a form of ours has them; else the log says how near."""
    rwkv = small_model(version, **WIDE, vocab_size=300)
    write_gguf(tmp_path / "a.gguf", rwkv.weights(), rwkv.config, kind)
    plain = build_transformer_model(checkpoint_path=tmp_path / "a.gguf")
    caplog.set_level(logging.INFO)
    kept = build_transformer_model(checkpoint_path=tmp_path / "a.gguf", quantization="keep")
    assert {scheme.bits for scheme in schemes(kept).values()} == {bits}
    (said,) = [record for record in caplog.records if "kept in the bytes" in record.message]
    exact = kind != "q5_1"
    assert ("exact" in said.message) == exact and (said.levelno == logging.INFO) == exact
    for path, kernel in numbers(kept).items():
        wanted = numbers(plain)[path]
        np.testing.assert_allclose(kernel, wanted, atol=0 if exact else np.abs(wanted).max() / 250)
    kept.save_to_preset(tmp_path / "preset")
    np.testing.assert_array_equal(logits(RWKV.from_preset(tmp_path / "preset")), logits(kept))


@pytest.mark.on("torch")
def test_bfloat16_is_kept(tmp_path):
    """Of any file: the numbers, in half of the bytes."""
    rwkv = small_model("7")
    write_pth(tmp_path / "half.pth", rwkv.weights(), dtype="bfloat16")
    half = build_transformer_model(checkpoint_path=tmp_path / "half.pth", quantization="keep")
    assert {scheme.bits for scheme in schemes(half).values()} == {16}
    plain = build_transformer_model(checkpoint_path=tmp_path / "half.pth", dtype="float32")
    for path, kernel in numbers(half).items():
        np.testing.assert_array_equal(kernel, numbers(plain)[path])


@pytest.mark.on("jax", "torch")
def test_bfloat16_stays_where_that_serves(tmp_path, monkeypatch, caplog):
    """'auto': as 'keep' where native kernels multiply, and said once; elsewhere, and of float32, nothing is packed.
    Kernels add up in another order than the backend: 1e-5.
    """
    rwkv = small_model("6")
    for dtype in ("bfloat16", "float32"):
        write_pth(tmp_path / f"{dtype}.pth", rwkv.weights(), dtype=dtype)

    def held(name, **options):
        return build_transformer_model(checkpoint_path=tmp_path / f"{name}.pth", quantization="auto", **options)

    build._say_halves.cache_clear()
    halves = [held("bfloat16") for _ in range(2)]
    assert {scheme.bits for scheme in schemes(halves[0]).values()} == {16}
    assert caplog.text.count("are held so") == 1 and "can be trained" not in caplog.text
    plain = build_transformer_model(checkpoint_path=tmp_path / "bfloat16.pth", dtype="float32")
    np.testing.assert_allclose(logits(halves[0]), logits(plain), atol=1e-5)
    assert schemes(held("bfloat16", dtype="bfloat16")) == schemes(halves[0])
    for other in (held("float32"), held("bfloat16", dtype="float16"), held("bfloat16", kernel="ops")):
        assert not any(schemes(other).values())
    monkeypatch.setenv("OPS_KERNEL", "1")
    assert not any(schemes(held("bfloat16")).values())


@pytest.mark.on("torch")
def test_a_full_disk(preset, tmp_path):
    """One error, which names the file, and no crash of HDF5; what was there stays."""
    folder, rwkv = preset
    before = (folder / "model.weights.h5").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*preset"):
            rwkv.save_to_preset(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "model.weights.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_plans_of_quantised_files(preset):
    """What a file has packed stays so, whatever is computed in: the bytes are those that the model takes then. What
    would round it twice is a problem of the strategy, said before anything is loaded.
    """
    folder, _ = preset
    for strategy in ("cpu fp32", "cpu fp32i4", "auto"):
        network = RWKV.from_preset(folder, strategy=strategy).backbone
        held = sum(np.asarray(ops.convert_to_numpy(variable)).nbytes for variable in network.variables)
        plan = RWKV.plan(folder, strategy)
        assert sum(row.bytes for row in plan.rows) == held and "in int4, int8, stays so" in str(plan)
    assert any("Leave i8 and i4 out" in problem for problem in RWKV.plan(folder, "cpu fp32i8").problems())
    with pytest.raises(ValueError, match="cannot be: The file is quantised"):
        RWKV.from_preset(folder, strategy="cpu fp32i8")


def test_quantizations_that_are_none():
    rwkv = small_model("7")
    for given, said in (
        (lambda: rwkv.quantize(None), "Received: None"),
        (lambda: Quantization("int8", "int4"), "are a `Scheme`, a tuple"),
        (lambda: rwkv.quantize(Quantization((Scheme(8),), None)), "1 schemes, for 2 blocks"),
        (lambda: rwkv.quantize(Quantization(Scheme(8), None, skip=("nonsense",))), "None has 'nonsense'"),
    ):
        with pytest.raises(ValueError, match=said):
            given()
    assert not any(schemes(rwkv).values())


def test_what_is_merged_into_none(preset, tmp_path):
    """A file's LoRA would be rounded with the matrix: refused, and nothing is changed."""
    _, rwkv = preset
    before = logits(rwkv)
    with pytest.raises(ValueError, match="merge into the model that it was made of"):
        rwkv.merge_lora(tmp_path / "any.pth")
    np.testing.assert_array_equal(logits(rwkv), before)
