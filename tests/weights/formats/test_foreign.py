"""Read, the tensors of any project have official names and shapes; written, they have those of that project."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert4keras_rwkv.config import RWKVConfig
from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth, write_safetensors
from bert4keras_rwkv.weights.checkpoint import open_checkpoint
from bert4keras_rwkv.weights.formats.registry import format_named
from tests.official import VERSIONS

pytestmark = pytest.mark.backend_free

# Recorded files: format, where, of which reference model.
RECORDED = [
    ("hf", "hf/rwkv_4", "4"),
    ("hf", "hf/rwkv_5.2", "5.2"),
    ("hf", "hf/rwkv_6", "6"),
    ("fla", "fla/rwkv_6", "6"),
    ("fla", "fla/rwkv_7", "7"),
    ("st", "st/6.st", "6"),
    ("st", "st/7.st", "7"),
]
# What each dialect says without a change of value.
SAID = [("hf", "4"), ("hf", "5.2"), ("hf", "6"), ("fla", "6"), ("fla", "7")]
SAID += [("st", version) for version in ("4", "5.2", "6", "7")]


def assert_same(found, expected):
    """The same names, with equal arrays of equal dtype, in any order."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array)


def in_file(path):
    """The tensors of a folder or file as they are called there, by the library."""
    return load_file(path / "model.safetensors" if path.is_dir() else path)


def expected_in(reference, kind):
    return {name: array.astype(np.float16) if kind == "st" else array for name, array in reference.items()}


@pytest.mark.oracle
@pytest.mark.parametrize("kind, where, version", RECORDED)
def test_files_of_other_projects_are_the_reference_model(oracles, kind, where, version):
    path = oracles / "formats" / where
    with open_checkpoint(path) as found, open_weights(oracles / f"reference/reference_{version}.pth") as reference:
        assert found.format.name == kind
        assert_same(found.tensors, expected_in(dict(reference), kind))
        assert found.config == RWKVConfig.from_shapes(reference.shapes)


@pytest.mark.oracle
@pytest.mark.parametrize("kind, where, version", RECORDED)
def test_what_is_written_is_what_their_converters_wrote(oracles, tmp_path, write, kind, where, version):
    """Names, shapes, dtypes and every bit, as the `safetensors` library reads them."""
    with open_weights(oracles / f"reference/reference_{version}.pth") as reference:
        path = write(kind, tmp_path / "a", reference)
    assert_same(in_file(path), in_file(oracles / "formats" / where))


@pytest.mark.oracle
@pytest.mark.parametrize("kind, where, version", [case for case in RECORDED if case[0] != "st"])
def test_the_config_says_what_theirs_does(oracles, tmp_path, write, kind, where, version):
    """Every key that theirs has too has the same value, but for what their converter gets wrong or leaves as it was."""
    with open_weights(oracles / f"reference/reference_{version}.pth") as reference:
        path = write(kind, tmp_path / "a", reference)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (path, oracles / "formats" / where))
    theirs |= {"bos_token_id": 0, "eos_token_id": 0} | ({"num_heads": 2} if kind == "fla" else {})
    shared = set(ours) & set(theirs)
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    sizes = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "model_type", "architectures"}
    assert sizes <= shared


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind, version", SAID)
def test_there_and_back_is_bit_for_bit(tmp_path, random_weights, write, kind, version, dtype):
    cast = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    official = {name: array.astype(cast) for name, array in random_weights(version).items()}
    path = write(kind, tmp_path / "a", official, dtype)
    with open_checkpoint(path) as found:
        assert found.format.name == ("safetensors" if (kind, version) == ("st", "4") else kind)
        assert_same(found.tensors, official)


@pytest.mark.parametrize("container", ["pth", "safetensors"])
@pytest.mark.parametrize("version", VERSIONS)
def test_official_files_are_read_as_they_are(tmp_path, random_weights, container, version):
    """No dialect takes the names of an official file for its own."""
    official = random_weights(version)
    {"pth": write_pth, "safetensors": write_safetensors}[container](tmp_path / "a", official)
    with open_checkpoint(tmp_path / "a") as found:
        assert found.format.name == container
        assert_same(found.tensors, official)


@pytest.mark.parametrize("prefix", ["", "model.", "_forward_module.model."])
@pytest.mark.parametrize("kind, version", [("hf", "5.2"), ("fla", "7")])
def test_the_container_and_prefixes_do_not_matter(tmp_path, random_weights, write, prefix, kind, version):
    """A `pytorch_model.bin` holds the same names as a `model.safetensors`."""
    official = random_weights(version)
    theirs = in_file(write(kind, tmp_path / "a", official))
    renamed = {prefix + name.removeprefix("model."): array for name, array in theirs.items()}
    (tmp_path / "b").mkdir()
    write_pth(tmp_path / "b/pytorch_model.bin", renamed)
    with open_weights(tmp_path / "b") as tensors:
        assert_same(tensors, official)


@pytest.mark.parametrize("kind", ["hf", "st"])
@pytest.mark.parametrize("bonus", ["5.1", "5.1 time_first"])
def test_a_decay_for_each_head_becomes_one_for_each_channel(tmp_path, random_weights, write, kind, bonus):
    """RWKV-5.1 is said as a 5.2. `time_first` was the logarithm of the bonus there."""
    official = random_weights("5.1")
    expected = dict(official)
    if bonus != "5.1":
        for i in range(2):
            value = official.pop(f"blocks.{i}.att.time_faaaa")
            official[f"blocks.{i}.att.time_first"] = value
            expected[f"blocks.{i}.att.time_faaaa"] = np.exp(value)
    for name, array in expected.items():
        if name.endswith(("time_decay", "time_faaaa")):
            expected[name] = np.repeat(array[:, None], 8, axis=1)
    with open_checkpoint(write(kind, tmp_path / "a", official, "float32")) as found:
        tensors = found.tensors
        assert found.config.variant == "5.2"
        assert set(tensors) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(tensors[name], array, rtol=1e-6)  # `exp` of two precisions


@pytest.mark.parametrize(
    "kind, version, sizes, message",
    [
        ("hf", "5.0", {}, r"no gate.*cannot be said"),
        ("st", "5.0", {}, r"no gate"),
        ("hf", "7", {}, r"--to fla"),
        ("fla", "5.2", {}, r"fla has RWKV-6 and RWKV-7"),
        (
            "hf",
            "6",
            {"ranks": (3, 5), "ffn": 24},
            r"intermediate_size 32 .*has 24.*decomposer_size 32.*time_decay_size",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_with_a_reason(tmp_path, random_weights, write, kind, version, sizes, message):
    with pytest.raises(WeightsError, match=message):
        write(kind, tmp_path / "a", random_weights(version, **sizes))
    assert list(tmp_path.iterdir()) == []


def test_one_rank_that_is_no_square_tells_the_layout(tmp_path, random_weights, write):
    """The others equal the hidden size; v7 has the same names in both."""
    official = random_weights("7", ranks=(16, 16, 16, 2))
    write("st", tmp_path / "a.st", official, "float32")
    write("safetensors", tmp_path / "b.safetensors", official)
    for name in ("a.st", "b.safetensors"):
        with open_weights(tmp_path / name) as tensors:
            assert_same(tensors, official)


def test_squares_alone_need_the_name_of_the_format(tmp_path, random_weights, write):
    """All ranks equal the hidden size: the shapes say nothing, and the error names the two ways to say it."""
    official = random_weights("7", ranks=(16, 16, 16, 16))
    write("st", tmp_path / "a.st", official, "float32")
    write("safetensors", tmp_path / "b.safetensors", official)
    for name, kind in (("a.st", "st"), ("b.safetensors", "safetensors")):
        with pytest.raises(WeightsError, match=r"--from safetensors` or `--from st`.*format='st'"):
            open_weights(tmp_path / name)
        with open_weights(tmp_path / name, format=kind) as tensors:
            assert_same(tensors, official)
    write_pth(tmp_path / "c.pth", official)  # web-rwkv has no such files
    with open_weights(tmp_path / "c.pth") as tensors:
        assert_same(tensors, official)


def test_a_format_that_the_file_cannot_be(tmp_path, random_weights):
    write_pth(tmp_path / "a.pth", random_weights("7"))
    with pytest.raises(WeightsError, match=r"stored as pth, which holds pth, hf, fla\. Received: format='st'"):
        open_weights(tmp_path / "a.pth", format="st")
    with pytest.raises(ValueError, match=r"No format 'no' can be read\. There are: "):
        open_weights(tmp_path / "a.pth", format="no")


def test_a_decay_by_heads_of_hugging_face(tmp_path, random_weights, write):
    """Their class makes it [H, N]; released files have it [1, 1, C]."""
    official = random_weights("6")
    theirs = in_file(write("hf", tmp_path / "a", official))
    shaped = {name: array.reshape(2, 8) if name.endswith(".time_decay") else array for name, array in theirs.items()}
    save_file(shaped, tmp_path / "b.safetensors")
    with open_weights(tmp_path / "b.safetensors") as tensors:
        assert_same(tensors, official)


def test_old_files_of_fla_hold_the_mixes_together(tmp_path, random_weights, write):
    official = random_weights("7")
    theirs = in_file(write("fla", tmp_path / "a", official))
    for i in range(2):
        parts = [theirs.pop(f"model.layers.{i}.attn.x_{letter}") for letter in "rwkvag"]
        theirs[f"model.layers.{i}.attn.x_x"] = np.concatenate(parts).reshape(6, -1)
    save_file(theirs, tmp_path / "b.safetensors")
    with open_weights(tmp_path / "b.safetensors") as tensors:
        assert_same(tensors, official)


def test_unused_tensors_of_layer_0_are_left_out_for_fla(tmp_path, random_weights, write):
    """RWKV-LM trains v0, v1 and v2 there though nothing uses them; fla has no place for them."""
    official = random_weights("7")
    more = {f"blocks.0.att.v{n}": official[f"blocks.1.att.v{n}"] for n in "012"}
    with open_weights(write("fla", tmp_path / "a", {**official, **more})) as tensors:
        assert_same(tensors, official)


def test_missing_and_extra_tensors_of_fla_are_in_one_message(tmp_path, random_weights, write):
    theirs = in_file(write("fla", tmp_path / "a", random_weights("6")))
    del theirs["model.layers.1.attn.bonus"]
    theirs["model.layers.0.oops"] = theirs["model.norm.weight"]
    save_file(theirs, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)'layers\.1\.attn\.bonus' is missing.*'layers\.0\.oops' has no place"):
        open_weights(tmp_path / "b.safetensors")


@pytest.mark.parametrize("kind, kept", [("st", True), ("hf", False), ("fla", False)])
def test_a_merged_state(tmp_path, random_weights, write, caplog, kind, kept):
    """[head, value, key] in a `.pth` is [head, key, value] in a `.st`; the others have no place for it, and say so."""
    state = {f"blocks.{i}.att.time_state": np.arange(128, dtype="float32").reshape(2, 8, 8) for i in range(2)}
    official = random_weights("6")
    path = write(kind, tmp_path / "a", {**official, **state}, "float32")
    assert any("initial state merged" in record.message for record in caplog.records) != kept
    if kept:
        np.testing.assert_array_equal(
            in_file(path)["blocks.0.att.time_state"], state["blocks.0.att.time_state"].swapaxes(1, 2)
        )
    with open_weights(path) as tensors:
        assert_same(tensors, {**official, **state} if kept else official)


@pytest.mark.parametrize(
    "kind, version, keys, epsilon",
    [
        ("hf", "6", {"head_size_divisor": 4}, 16e-5),
        ("hf", "4", {"layer_norm_epsilon": 1e-5}, 64e-5),
        ("fla", "6", {"norm_eps": 1e-5}, 64e-5),
        ("fla", "7", {"norm_eps": 1e-3, "num_heads": 32}, 64e-5),
    ],
)
def test_only_hugging_face_says_the_epsilon(tmp_path, random_weights, write, caplog, kind, version, keys, epsilon):
    """By `head_size_divisor`. fla's `norm_eps` is not what its models were made for. Neither is worth a warning."""
    path = write(kind, tmp_path / "a", random_weights(version))
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **keys, "unknown_key": [1]}))
    with open_checkpoint(path) as found:
        config = found.config
    assert config.group_norm_epsilon == pytest.approx(epsilon)
    assert config.layer_norm_epsilon == 1e-5
    assert not caplog.records


@pytest.mark.parametrize(
    "keys",
    [
        {"hidden_size": 99, "head_size_divisor": 4},
        {"head_size_divisor": "8"},
        {"head_size_divisor": 1e300},
        {"layer_norm_epsilon": -1},
    ],
)
def test_a_foreign_config_of_another_model_is_not_used(tmp_path, random_weights, write, caplog, keys):
    path = write("hf", tmp_path / "a", random_weights("6"))
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **keys}))
    with open_checkpoint(path) as found:
        assert found.config == RWKVConfig.from_shapes(found.tensors.shapes)
    assert ["Not used" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("head_size", [8, 64])
def test_fla_is_told_the_epsilon_where_it_can_be(tmp_path, random_weights, write, head_size):
    """RWKV-7 multiplies `norm_eps` by the size of a head; RWKV-6 does not, so a README says what to set."""
    seven = write("fla", tmp_path / "7", random_weights("7", head_size=head_size))
    six = write("fla", tmp_path / "6", random_weights("6", head_size=head_size))
    said = json.loads((seven / "config.json").read_text())
    assert said["norm_eps"] * said["head_dim"] == pytest.approx(64e-5)
    assert not (seven / "README.md").exists()
    assert json.loads((six / "config.json").read_text())["norm_eps"] == 1e-5
    assert "layer.attn.g_norm.eps = 0.00064" in (six / "README.md").read_text()


def test_st_is_float16_unless_told(tmp_path, random_weights, write):
    path = write("st", tmp_path / "a.st", random_weights("6"))
    assert {str(array.dtype) for array in in_file(path).values()} == {format_named("st").dtype} == {"float16"}


def test_numbers_too_large_for_float16_are_refused(tmp_path, random_weights, write):
    official = random_weights("6")
    official["head.weight"][3, 3] = 1e5
    with pytest.raises(WeightsError, match=r"'head\.weight' has numbers too large for float16"):
        write("st", tmp_path / "a.st", official)
    assert list(tmp_path.iterdir()) == []
