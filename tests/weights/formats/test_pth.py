"""Every container a `.pth` comes in is read without torch; nothing in it is executed; damage is one kind of error."""

import pickle
import struct
import tempfile
import time
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert4keras_rwkv.weights import WeightsError, open_weights, write_pth
from bert4keras_rwkv.weights.formats.pth import open_pth

pytestmark = pytest.mark.backend_free

CONTAINERS = {
    "zip.pth": "",
    "legacy.pth": "",
    "ordereddict.pth": "",
    "parameters.pth": "",
    "state_dict_with_metadata.pth": "",
    "nested_state_dict.pth": "",
    "model_prefix.pth": "",
    "odd_tensors.pth": "",
    "views_shared_storage.pth": "",
    "fp64.pth": "",
    "bf16.pth": "#bf16",
    "fp16.pth": "#fp16",
    "mixed_bf16_fp32.pth": "#bf16",
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_of_the_oracle(oracles, name):
    """Bits, not just values: every tensor whose expected array is recorded is equal to it."""
    expected = np.load(oracles / "pth/expected.npz")
    with open_weights(oracles / "pth" / name) as tensors:
        compared = 0
        for key in tensors:
            array = tensors[key]
            assert (array.shape, array.dtype) == (tensors.shapes[key], tensors.dtypes[key])
            recorded = key + (CONTAINERS[name] if array.dtype.itemsize == 2 else "")
            if recorded in expected:
                np.testing.assert_array_equal(array.astype(np.float32), expected[recorded])
                compared += 1
        assert compared >= 9


@pytest.mark.oracle
def test_malicious_pickle_is_refused_and_not_run(oracles):
    with pytest.raises(WeightsError, match=r"'__builtin__\.eval'"):
        open_weights(oracles / "pth/malicious.pth")
    assert not (Path(tempfile.gettempdir()) / "PWNED_BY_PTH").exists()


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["with_pip_converted_markers.pth", "converted_5.2_cpu-fp32i8.pth"])
def test_converted_files_are_refused_with_the_reason(oracles, name):
    with pytest.raises(ValueError, match="converted by the `rwkv` package"):
        open_weights(oracles / "pth" / name)
    with open_pth(oracles / "pth" / name) as tensors:
        assert tensors.metadata["_strategy"].startswith("cpu fp32")


def saved_by_torch(torch, path, legacy=False):
    """A file with what checkpoints were seen to have: Parameters, views of one storage, strides, several dtypes."""
    torch.manual_seed(0)
    shared = torch.arange(24, dtype=torch.float32)
    tensors = OrderedDict(
        weight=torch.nn.Parameter(torch.randn(3, 5)),
        half=torch.randn(2, 3).half(),
        bfloat=torch.randn(4).bfloat16(),
        double=torch.randn(2, dtype=torch.float64),
        part=shared[5:17].view(3, 4),
        turned=shared.view(4, 6).t(),
        repeated=shared[3:4].expand(6),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        ints=torch.arange(4),
        flags=torch.tensor([True, False]),
    )
    tensors._metadata = {"": {"version": 1}}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    return tensors


@pytest.mark.live
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_saves(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    expected = saved_by_torch(torch, tmp_path / "a.pth", legacy)
    with open_weights(tmp_path / "a.pth") as tensors:
        assert list(tensors) == list(expected)
        for name, tensor in expected.items():
            assert tensors[name].shape == tuple(tensor.shape)
            assert str(tensors.dtypes[name]) == str(tensor.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(tensors[name].astype(np.float64), tensor.detach().double().numpy())


@pytest.mark.live
@pytest.mark.parametrize("prefix", ["model.", "_forward_module.model.", "module."])
def test_prefixes_of_trainers_are_taken_away(tmp_path, prefix):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {prefix + "emb.weight": torch.zeros(2)}, "epoch": 3}, tmp_path / "a.pth")
    with open_weights(tmp_path / "a.pth") as tensors:
        assert list(tensors) == ["emb.weight"]
        assert tensors.metadata == {"epoch": 3}


def test_two_names_that_become_one(tmp_path):
    write_pth(tmp_path / "a.pth", {"emb.weight": np.zeros(2), "model.emb.weight": np.zeros(2)})
    with pytest.raises(WeightsError, match=r"both 'emb\.weight'"):
        open_weights(tmp_path / "a.pth")


class Harm:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zip_with(path, pickled, storages=()):
    """A `.pth` with this pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages:
            archive.writestr(f"archive/data/{key}", data)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_other_global_is_run(tmp_path, protocol):
    """`open` would create the file. Which way a protocol spells it makes no difference."""
    witness = tmp_path / "witness"
    harm = pickle.dumps({"emb.weight": Harm(open, str(witness), "w")}, protocol=protocol)
    zip_with(tmp_path / "zip.pth", harm)
    (tmp_path / "bare.pth").write_bytes(b"\x80\x02" + harm.removeprefix(bytes([0x80, protocol])))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(WeightsError):
            open_pth(tmp_path / name)
    assert not witness.exists()


def view_pickle(size, offset, shape, strides, storage="FloatStorage"):
    """A pickle of one tensor that claims whatever it likes."""

    def number(value):
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    persistent = b"(U\x07storagectorch\n" + storage.encode() + b"\nU\x010U\x03cpu" + number(size) + b"tQ"
    view = b"(" + persistent + number(offset) + numbers(shape) + numbers(strides) + b"\x89Nt"
    return b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n" + view + b"Rs."


ABSURD = {
    "claims more than there is": (view_pickle(1 << 40, 0, (1 << 40,), (1,)), "not there or too short"),
    "reaches beyond its storage": (view_pickle(4, 2, (4,), (1,)), "beyond its storage"),
    "repeats one number for ever": (view_pickle(4, 0, (1 << 50,), (0,)), "claim 4503599627370496 bytes"),
    "negative stride": (view_pickle(4, 3, (4,), (-1,)), "unknown way"),
    "negative size": (view_pickle(4, 0, (-4,), (1,)), "unknown way"),
    "complex numbers": (view_pickle(4, 0, (4,), (1,), "ComplexFloatStorage"), r"torch\.ComplexFloatStorage"),
    "bytes longer than the file": (b"\x80\x02B\xff\xff\xff\x7fabc.", "cannot be read"),
    "a pickle without an end": (b"\x80\x02}" * 10, "cannot be read"),
    "a list": (b"\x80\x02].", "holds a list"),
    "a number as a name": (b"\x80\x02}K\x01K\x02s.", "not all its names are text"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_claims_are_errors_at_once(tmp_path, name):
    pickled, message = ABSURD[name]
    zip_with(tmp_path / "a.pth", pickled, [("0", bytes(16))])
    started = time.perf_counter()
    with pytest.raises(WeightsError, match=message):
        open_weights(tmp_path / "a.pth")
    assert time.perf_counter() - started < 5  # far above what it takes, far below reading what is claimed


def test_compressed_storages_are_refused(tmp_path):
    """torch never compresses, and what unpacks to a thousand times its size is no weight."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", view_pickle(1 << 20, 0, (1 << 20,), (1,)), zipfile.ZIP_STORED)
        archive.writestr("archive/data/0", bytes(4 << 20))
    with pytest.raises(WeightsError, match="compressed"):
        open_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"hello world, no weights", b"GGUF\x03", b"\x89HDF\r\n\x1a\n"]
)
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth"):
        open_weights(tmp_path / "a.pth")


def small_file(legacy):
    """The bytes of a small `.pth`."""
    if legacy:
        storage = struct.pack("<q", 4) + np.arange(4, dtype=np.float32).tobytes()
        parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
        pickles = [pickle.dumps(part, protocol=2) for part in parts]
        view = view_pickle(4, 0, (2, 2), (2, 1))
        return b"".join(pickles) + view.replace(b"tQ", b"NtQ") + pickle.dumps(["0"], protocol=2) + storage
    with tempfile.TemporaryDirectory() as folder:
        write_pth(
            Path(folder) / "a",
            {"emb.weight": np.ones((2, 2), np.float32), "head.weight": np.ones(3, ml_dtypes.bfloat16)},
        )
        return (Path(folder) / "a").read_bytes()


def read_all(content):
    """Open and read everything in a file with this content."""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        file.write(content)
        file.flush()
        with open_pth(file.name) as tensors:
            return {name: tensors[name] for name in tensors}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_small_files_are_good(legacy):
    """Else the next test would show nothing."""
    assert all(array.size for array in read_all(small_file(legacy)).values())


@pytest.mark.parametrize("legacy", [False, True])
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_one_kind_of_error(legacy, data):
    """Cut off anywhere, with any bytes changed, a file is read or refused by a `WeightsError`: nothing else."""
    content = bytearray(small_file(legacy))
    kept = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(places, max_size=4)):
        content[place] = byte
    with suppress(WeightsError):
        read_all(bytes(content[:kept]))
