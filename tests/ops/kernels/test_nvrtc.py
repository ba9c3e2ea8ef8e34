"""What compiles the kernels of a GPU: which one is taken, what is kept of its work, and why there is none."""

import shutil
import subprocess
from dataclasses import dataclass

import pytest

from bert4keras_rwkv.ops.kernels import cuda, library, nvrtc
from bert4keras_rwkv.ops.kernels.kept import NoLibraryError

pytestmark = pytest.mark.backend_free
KERNELS = [(name, part) for name in cuda.SOURCES for part in cuda.parts(name)]
PRODUCTS = [name for name in cuda.SOURCES if name.startswith("product")]
installed = nvrtc.installed()
with_nvrtc = pytest.mark.skipif(not installed, reason="no NVRTC")


def compiled(one, name, part, N, dtypes, architecture, files=None):
    """The cubin of a kernel, of `files` in place of the package's."""
    files, source = files or library.source_files(), cuda.SOURCES[name]
    headers = {name: files[name] for name in nvrtc.includes(source, files)}
    options = cuda.Key(name, part, N, dtypes, architecture).options()
    return one.cubin(source, files[source], headers, [f"--gpu-architecture=sm_{architecture}", *options])


DTYPES = ("bf16", "float"), ("bf16", "bf16"), ("float", "float")


def asked(name):
    """The dtypes that a kernel is asked for. By chunks nothing goes in float32; products have no decay."""
    if not name.startswith("wkv"):
        return DTYPES[::2]
    return DTYPES[: 2 if name.endswith("_chunked") else 3]


def most_rows(name):
    """The largest size that a kernel of a product is compiled for; of others a head size."""
    return 8 if name in PRODUCTS and "many" not in name else 64


def cases():
    """Each kernel for each architecture and the dtypes that it is asked for."""
    for name, part in KERNELS:
        for dtypes in asked(name):
            for architecture in (80, 90, 120):
                repeats = architecture != 90 and dtypes != DTYPES[0]
                marks = [pytest.mark.slow] if repeats else []
                yield pytest.param(name, part, dtypes, architecture, marks=marks)


@with_nvrtc
@pytest.mark.parametrize(("name", "part", "dtypes", "architecture"), list(cases()))
def test_every_kernel_compiles(name, part, dtypes, architecture):
    cubin = compiled(installed[0], name, part, most_rows(name), dtypes, architecture)
    assert cubin.startswith(b"\x7fELF") and f".text.{part}".encode() in cubin


@with_nvrtc
@pytest.mark.parametrize("N", [16, 17, 40, 100, 128])
@pytest.mark.parametrize(("name", "part"), [one for one in KERNELS if one[0] in ("wkv6", "wkv7")])
def test_every_head_size_compiles(name, part, N):
    assert compiled(installed[0], name, part, N, ("bf16", "float"), 90)


@with_nvrtc
@pytest.mark.parametrize("N", [N for N in cuda.CHUNKED_HEADS if N != 64])
@pytest.mark.parametrize(("name", "part"), [one for one in KERNELS if "chunked" in one[0]])
def test_every_head_size_by_chunks_compiles(name, part, N):
    assert compiled(installed[0], name, part, N, ("bf16", "float"), 90)


@with_nvrtc
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_number_of_rows_compiles(name):
    """Few rows also for processors that are older than tensor cores of that kind."""
    for rows in cuda.MANY_ROWS if "many" in name else cuda.FEW_ROWS:
        assert compiled(installed[0], name, "forward", rows, ("float", "float"), 80 if "many" in name else 75)


@with_nvrtc
def test_a_source_that_is_wrong_is_quoted():
    files = {**library.source_files(), "wkv4.cu": b'#include "port.h"\nint x = y;\n'}
    with pytest.raises(NoLibraryError, match=r"NVRTC [\d.]+ cannot compile wkv4\.cu: .*error.* \"y\""):
        compiled(installed[0], "wkv4", "forward", 0, ("float", "float"), 90, files)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize(("name", "part"), KERNELS)
def test_nvcc_finds_nothing_to_warn_of(name, part, tmp_path):
    options = cuda.Key(name, part, most_rows(name), ("bf16", "float"), 90).options()
    source, made = library.SOURCES / cuda.SOURCES[name], tmp_path / "made"
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", *options, "-cubin", source, "-o", made]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclass
class Compiler:
    """An NVRTC of a version that knows some architectures; it counts."""

    version: tuple[int, int]
    architectures: tuple[int, ...] = (80, 90)
    path: str = "libnvrtc.so"
    calls: int = 0

    target = nvrtc.Nvrtc.target
    __str__ = nvrtc.Nvrtc.__str__

    def cubin(self, name, source, headers, options, log=None):
        self.calls += 1
        return repr((name, sorted(headers), options)).encode()


def test_the_newest_that_serves_is_taken(monkeypatch):
    """It knows the device, and the driver takes its cubins."""
    old, middle, new = Compiler((12, 4), (80, 90)), Compiler((12, 9), (80, 120)), Compiler((13, 5), (90, 120))
    monkeypatch.setattr(nvrtc, "installed", lambda: [new, middle, old])
    assert nvrtc.choose(120, 13000) is new and nvrtc.choose(80, 13000) is middle
    assert nvrtc.choose(120, 12080) is middle and nvrtc.choose(90, 12080) is old
    assert [middle.target(x) for x in (75, 80, 86, 121)] == [None, 80, 80, 120]


def test_two_of_a_version_are_one(monkeypatch, tmp_path):
    """And what cannot be loaded is none."""
    found = {"a": Compiler((12, 9)), "b": Compiler((13, 5)), "c": Compiler((13, 5))}

    def load(path):
        if path not in found:
            raise OSError(path)
        return found[path]

    monkeypatch.setattr(nvrtc, "Nvrtc", load)
    monkeypatch.setattr(nvrtc, "paths", lambda: ["broken", "a", "b", "c"])
    assert nvrtc.installed() == [found["b"], found["a"]]
    assert nvrtc.installed()[0] is found["b"]


@pytest.mark.parametrize(
    ("compilers", "reason"),
    [
        ([], "none is found: pip install nvidia-cuda-nvrtc"),
        ([Compiler((13, 5))], r"driver is older \(12\) than every NVRTC here \(13\.5\)"),
        ([Compiler((12, 9))], r"No NVRTC here \(12\.9\) compiles for this device \(sm_120\)"),
    ],
)
def test_why_there_is_none(compilers, reason, monkeypatch):
    monkeypatch.setattr(nvrtc, "installed", lambda: compilers)
    with pytest.raises(NoLibraryError, match=reason):
        nvrtc.choose(120, 12080)


def test_a_cubin_is_kept_and_a_damaged_one_made_again(monkeypatch, tmp_path):
    """By all that it is made of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = Compiler((13, 5))
    monkeypatch.setattr(cuda, "_found", {"compiler": compiler})
    key = cuda.Key("wkv7", "forward", 64, ("bf16", "float"), 90)
    path = cuda.cubin(key)
    whole = path.read_bytes()
    assert cuda.cubin(key) == path and compiler.calls == 1
    assert "sm_90" in whole.decode() and "-DDELTA=1" in whole.decode() and "geometry.h" in whole.decode()
    path.write_bytes(whole[:-1])
    assert cuda.cubin(key).read_bytes() == whole and compiler.calls == 2
    others = {
        cuda.cubin(cuda.Key(*x))
        for x in (("wkv6", *KEY), ("wkv7", "step", *KEY[1:]), ("wkv7", "forward", 32, *KEY[2:]))
    }
    compiler.version = (13, 6)
    assert len({path, *others, cuda.cubin(key)}) == 5


KEY = "forward", 64, ("bf16", "float"), 90


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        ("/nowhere/libcuda.so.1", r"There is no CUDA driver \(/nowhere/libcuda\.so\.1\)\."),
        ("libc.so.6", "is no CUDA driver"),
    ],
)
def test_why_there_is_no_device(driver, reason, monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER", driver)
    monkeypatch.setattr(cuda, "_found", {})
    for _ in range(2):
        with pytest.raises(NoLibraryError, match=reason):
            cuda.compiler()
