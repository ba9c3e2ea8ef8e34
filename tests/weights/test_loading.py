"""A table fits a file to a model: all or nothing, every problem in one message, and back without loss."""

import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.versions.table import STACK, TRANSPOSE, VECTOR, columns
from bert4keras_rwkv.weights import Rule, WeightsError, assign, export, open_weights, tensors, write_pth
from bert4keras_rwkv.weights.copying import laid_out
from bert4keras_rwkv.weights.loading import in_order, to_variables
from bert4keras_rwkv.weights.tensors import Tensor, Tensors, as_tensors

pytestmark = pytest.mark.backend_free


def rules(layers=2):
    """The table of a model of so many blocks."""
    table = [Rule("emb.weight", "embed/embeddings")]
    for i in range(layers):
        table.append(Rule(f"blocks.{i}.ln1.weight", f"blocks/{i}/ln1/gamma"))
        if i == 0:
            table.append(Rule("blocks.0.ln0.weight", "ln0/gamma"))
        table += [
            Rule((f"blocks.{i}.att.maa_w", f"blocks.{i}.att.maa_k"), f"blocks/{i}/time_mix/mix", STACK),
            Rule(f"blocks.{i}.att.maa_w1", f"blocks/{i}/time_mix/low", columns(2)),
            Rule(f"blocks.{i}.att.unused", None),
            Rule(f"blocks.{i}.att.decay", f"blocks/{i}/time_mix/decay", VECTOR),
            Rule(f"blocks.{i}.att.key.weight", f"blocks/{i}/time_mix/key/kernel", TRANSPOSE),
        ]
    return [*table, Rule("head.weight", "head/kernel", TRANSPOSE)]


RULES = rules()


class Variable:
    """What a rule needs of a Keras variable."""

    def __init__(self, shape, dtype="float32"):
        self.shape, self.dtype, self.value = shape, dtype, None

    def assign(self, array):
        self.value = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)


def variables(dtype="float32", layers=2):
    """The variables of a model of width 4, 5 ids and rank 3."""
    shapes = {"embed/embeddings": (5, 4), "ln0/gamma": (4,), "head/kernel": (4, 5)}
    for i in range(layers):
        mixer = {"mix": (2, 4), "low": (2, 4, 3), "decay": (4,), "key/kernel": (4, 7)}
        shapes |= {f"blocks/{i}/ln1/gamma": (4,)} | {f"blocks/{i}/time_mix/{n}": s for n, s in mixer.items()}
    return {path: Variable(shape, dtype) for path, shape in shapes.items()}


@pytest.fixture
def file(rng):
    """The tensors of a file for that model, in the order of a released one."""
    shapes = {"emb.weight": (5, 4)}
    for i in range(2):
        shapes |= {f"blocks.{i}.ln1.weight": (4,)} | ({"blocks.0.ln0.weight": (4,)} if i == 0 else {})
        mixer = {"maa_w": (1, 1, 4), "maa_k": (1, 1, 4), "maa_w1": (4, 6), "decay": (1, 1, 4), "key.weight": (7, 4)}
        shapes |= {f"blocks.{i}.att.{name}": shape for name, shape in mixer.items()}
    shapes |= {"head.weight": (5, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_every_variable_is_filled_as_its_rule_says(file):
    model = variables()
    assign(RULES, file, model)
    np.testing.assert_array_equal(model["embed/embeddings"].value, file["emb.weight"])
    np.testing.assert_array_equal(model["head/kernel"].value, file["head.weight"].T)
    for i in range(2):
        np.testing.assert_array_equal(model[f"blocks/{i}/time_mix/mix"].value[0], file[f"blocks.{i}.att.maa_w"][0, 0])
        np.testing.assert_array_equal(model[f"blocks/{i}/time_mix/mix"].value[1], file[f"blocks.{i}.att.maa_k"][0, 0])
        low, both = model[f"blocks/{i}/time_mix/low"].value, file[f"blocks.{i}.att.maa_w1"]
        np.testing.assert_array_equal(np.concatenate(list(low), axis=1), both)


def test_there_and_back_is_the_same_file(file, same):
    """Names, their order, shapes, dtypes and bits."""
    model = variables()
    assign(RULES, file, model)
    same(export(RULES, model.__getitem__), file)
    paths = to_variables(RULES, Tensors({n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in file.items()}))
    same(export(RULES, lambda path: paths.entry(path)), file)


def test_export_reads_nothing_until_asked():
    """Shapes and dtypes come from the variables' own, so that a large model can be written tensor by tensor."""
    exported = export(RULES, variables("bfloat16").__getitem__)  # its variables have no value yet
    assert exported.shapes["blocks.1.att.maa_k"] == (1, 1, 4)
    assert exported.dtypes["head.weight"] == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_tensors_take_the_dtype_of_their_variable(file, dtype):
    model = variables(dtype)
    assign(RULES, file, model)
    assert {str(variable.value.dtype) for variable in model.values()} == {dtype}
    np.testing.assert_array_equal(
        model["ln0/gamma"].value, file["blocks.0.ln0.weight"].astype(model["ln0/gamma"].value.dtype)
    )


def test_all_problems_in_one_message_and_nothing_assigned(file):
    model = variables()
    file["oops"] = np.zeros(3)
    del file["emb.weight"]
    file["blocks.1.att.key.weight"] = np.zeros((4, 4))
    file["blocks.0.att.maa_w"] = np.zeros((1, 1, 3))
    with pytest.raises(WeightsError) as caught:
        assign(RULES, file, model)
    assert str(caught.value).splitlines() == [
        "4 weights do not fit:",
        "  no rule for 'oops' in the file",
        "  nothing in the file fills 'embed/embeddings' (emb.weight)",
        "  'blocks/0/time_mix/mix' wants (2, 4), "
        "'blocks.0.att.maa_w', 'blocks.0.att.maa_k' gives (1, 1, 3) and (1, 1, 4)",
        "  'blocks/1/time_mix/key/kernel' wants (4, 7), 'blocks.1.att.key.weight' gives (4, 4)",
    ]
    assert all(variable.value is None for variable in model.values())


def test_a_long_list_is_cut(file):
    with pytest.raises(WeightsError, match=r"42 weights do not fit:\n(  .*\n){20}  and 22 more$"):
        assign(RULES, {f"{name}.{i}": file["emb.weight"] for i in range(14) for name in "abc"} | file, variables())


def test_another_depth_is_an_error(file):
    with pytest.raises(WeightsError, match=r"no rule for 'blocks\.1\.ln1\.weight'"):
        assign(rules(1), file, variables(layers=1))
    with pytest.raises(WeightsError, match="fills 'blocks/2/ln1/gamma'"):
        assign(rules(3), file, variables(layers=3))


def test_a_hole_in_the_table_is_an_error(file):
    with pytest.raises(WeightsError, match="no rule fills 'extra'"):
        assign(RULES, file, variables() | {"extra": Variable((3,))})
    with pytest.raises(WeightsError, match="the model has no 'ln0/gamma'"):
        assign(RULES, file, {path: v for path, v in variables().items() if path != "ln0/gamma"})


def test_tensors_that_are_not_used_may_be_there_or_not(file):
    """They fill nothing, and keep their place in the order of a released file."""
    names = list(file)
    file["blocks.1.att.unused"] = np.zeros((2, 2, 2))
    assign(RULES, file, variables())
    names.insert(names.index("blocks.1.att.decay"), "blocks.1.att.unused")
    assert list(in_order(RULES, as_tensors(file))) == names


def test_progress_counts_to_the_end(file):
    seen = []
    assign(RULES, file, variables(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 13) for n in range(1, 14)]


def test_one_tensor_at_a_time(file):
    """A tensor is read when its variable is filled, after all the shapes were compared."""
    log = []

    class Noting(Variable):
        def assign(self, array):
            log.append("assigned")

    def reading(array):
        return lambda: log.append("read") or array

    lazy = Tensors({name: Tensor(a.shape, a.dtype, reading(a)) for name, a in file.items()})
    model = {path: Noting(variable.shape) for path, variable in variables().items()}
    assign(RULES, lazy, model)
    singles = [rule for rule in RULES if len(rule.names) == 1 and rule.path]
    assert log.count("read") == len(file)
    assert "assigned read assigned" in " ".join(log) and len(singles) < len(file)
    assert "read read read" not in " ".join(log)  # two at most: the vectors that are stacked


def test_pieces_make_the_whole(file, monkeypatch, tmp_path):
    """A tensor read a few rows at a time fills its variable as one read at once, from memory or from a file."""
    expected, found = variables("float16"), variables("float16")
    assign(RULES, file, expected)
    write_pth(tmp_path / "a.pth", file)
    monkeypatch.setattr(tensors, "PIECE", 20)
    with open_weights(tmp_path / "a.pth") as lazy:
        assert len(list(lazy.entry("emb.weight").pieces())) == 5
        assign(RULES, lazy, found)
    for path, variable in expected.items():
        np.testing.assert_array_equal(found[path].value, variable.value)


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (33, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_are_laid_out_for_jax(rng, shape, dtype):
    """C order from a multiple of 64 bytes on, cast, also from a transposed view."""
    array = np.asarray(rng.normal(size=shape), np.float32)
    kind = tensors.dtype_named(dtype)
    for source in (array, array.T):
        laid = laid_out(source, kind)
        assert laid.flags.c_contiguous and (laid.size == 0 or laid.ctypes.data % 64 == 0)
        np.testing.assert_array_equal(laid, source.astype(kind))
