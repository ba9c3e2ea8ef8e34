"""The library of kernels is built once, whole or not at all, and whoever cannot build it says why in one sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert4keras_rwkv.ops.kernels import library
from tests.ops.kernels import quick

pytestmark = pytest.mark.backend_free
# For the plainest instruction set and without JAX, which is quick.
BUILD = """
from bert4keras_rwkv.ops.kernels import library
library.LEVELS, library._ffi_headers = {}, lambda: None
print(library.library().levels()[0], library.library().path)
"""


def started(folder, **variables):
    """A process that builds or loads the library in a cache folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILD],
        env=quick.environment(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def build_quickly(tmp_path, monkeypatch):
    """From here on in a folder of its own, for one instruction set, without XLA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(quick.compiler(tmp_path)))
    monkeypatch.setattr(library, "LEVELS", {})
    monkeypatch.setattr(library, "_ffi_headers", lambda: None)


def pretender(folder, then):
    """A program that answers as the compiler does when it is asked who it is, and then does something else."""
    script = folder / "c++"
    answer = f'case "$*" in *-E*) exec {library._compiler()[0]} "$@";; esac'
    script.write_text(f"#!/bin/sh\n{answer}\n{then}\n")
    script.chmod(0o755)
    return script


def test_ten_processes_build_it_once(tmp_path):
    """And it is said once, when it begins, for it takes long."""
    log = tmp_path / "log"
    compiler = quick.compiler(tmp_path, log)
    folder = tmp_path / "用户 cache"
    processes = [started(folder, CXX=str(compiler)) for _ in range(10)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, outputs
    assert len({out for out, _ in outputs}) == 1
    where = folder / "bert4keras-rwkv" / "kernels"
    assert "".join(err for _, err in outputs) == library.BUILDING % (compiler, where) + "\n"  # of the one that builds
    calls = log.read_text().splitlines()
    assert sum("-shared" in call for call in calls) == 1
    left = sorted(path.suffix for path in where.iterdir())
    assert left == [".lock", ".sha256", ".so"]


def test_a_damaged_one_is_built_again(tmp_path, monkeypatch):
    """And takes the place of what was there."""
    build_quickly(tmp_path, monkeypatch)
    path = library.build()
    whole, built = path.read_bytes(), []

    def compile_again(compiler, levels, headers, target):
        built.append(target)
        Path(target).write_bytes(whole)

    monkeypatch.setattr(library, "_compile", compile_again)
    for damaged in (whole[: len(whole) // 2], whole[:-1] + b"\xff"):
        path.unlink()
        path.write_bytes(damaged)
        assert library.build() == path and path.read_bytes() == whole
    assert len(built) == 2 and library.Library(path).levels() == ["plain"]


def test_one_that_cannot_be_loaded_is_not_kept(tmp_path, monkeypatch):
    """A compiler that says that all is well, and writes nonsense."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done'
    monkeypatch.setenv("CXX", str(pretender(tmp_path, write)))
    with pytest.raises(library.NoLibraryError, match="cannot be loaded"):
        library.build()
    assert not list(tmp_path.rglob("*.so"))


def test_a_whole_one_is_not_written_to(tmp_path, monkeypatch):
    """Its folder may be on a file system that cannot be."""
    build_quickly(tmp_path, monkeypatch)
    path = library.build()
    monkeypatch.setattr("bert4keras_rwkv.ops.kernels.kept.locked", None)
    assert library.build() == path


def test_what_was_built_serves_without_a_compiler(tmp_path, monkeypatch):
    """As on a machine that shares the folder; not to build anew, and not what is damaged or of other sources."""
    build_quickly(tmp_path, monkeypatch)
    path = library.build()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert library.build() == path
    with pytest.raises(library.NoLibraryError, match="none is found"):
        library.build(again=True)
    with monkeypatch.context() as other:
        other.setattr(library, "OPTIONS", ("-O2",))
        with pytest.raises(library.NoLibraryError, match="none is found"):
            library.build()
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(library.NoLibraryError, match="none is found"):
        library.build()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": "/nowhere/c++"}, "none is found (/nowhere/c++)"),
        ({"CXX": "false"}, "does not run: exit status 1."),
        ({"CXX": "true"}, "does not answer as a C++ compiler does. CXX names another."),
        ({"CXX": "true 'x"}, "CXX is a compiler and its options, as for a shell. Received: true 'x"),
        ({"XDG_CACHE_HOME": "/dev/null/cache"}, "cannot be kept in the cache folder"),
    ],
)
def test_why_there_is_none(variables, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(library.NoLibraryError) as caught:
        library.build()
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("exit 0", "was to compile"),
        ("exit 1", "exit status 1."),
        ("kill -9 $$", "it was ended by signal 9."),
        ("echo error: No space left on device. >&2; exit 1", ": error: No space left on device."),
    ],
)
def test_a_compiler_that_writes_nothing(then, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(pretender(tmp_path, then)))
    monkeypatch.setattr(library, "_found", {})
    with pytest.raises(library.NoLibraryError) as caught:
        library.library()
    said = str(caught.value)
    assert reason in said and said.endswith(".") and not said.endswith("..") and "\n" not in said
    assert [path.name for path in (tmp_path / "bert4keras-rwkv" / "kernels").iterdir()] == ["cpu.lock"]


def test_a_compiler_with_options(tmp_path, monkeypatch):
    """CXX is read as a shell does, and other options are another library."""
    build_quickly(tmp_path, monkeypatch)
    plain, log = library.plan(), tmp_path / "log"
    monkeypatch.delenv("CXX")
    compiler = quick.compiler(tmp_path, log)
    monkeypatch.setenv("CXX", f"env '{compiler}' -DNOTHING='a b'")
    path = library.build()
    assert path != plain.path and path == library.plan().path
    calls = [call for call in log.read_text().splitlines() if call.startswith("-DNOTHING=a b ")]
    assert sum(" -c " in call for call in calls) == 2 + len(library.KERNELS) and any(
        "-shared" in call for call in calls
    )


def test_a_compiler_that_is_another_each_time(tmp_path, monkeypatch):
    """As it says of itself: what counts is the version that it tells programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = pretender(tmp_path, "exit 1")
    script.write_text(script.read_text().replace("case", "date +%N; case", 1))
    monkeypatch.setenv("CXX", str(script))
    assert library.plan() == library.plan()


def test_what_stands_in_its_place(tmp_path, monkeypatch):
    """A link is replaced, not what it leads to; anything else is named."""
    build_quickly(tmp_path, monkeypatch)
    path = library.plan().path
    monkeypatch.setattr(library, "_compile", lambda *args: Path(args[-1]).write_bytes(b"a library"))
    monkeypatch.setattr(library, "Library", lambda path: path)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for target in (precious, tmp_path / "nowhere" / "x", path):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        assert library.build() == path and path.read_bytes() == b"a library" and not path.is_symlink()
    assert precious.read_text() == "precious"
    for wrong in (path, path.with_suffix(".sha256"), path.parent / "cpu.lock"):
        wrong.unlink()
        for make in (Path.mkdir, os.mkfifo)[: 1 if wrong.suffix == ".lock" else 2]:
            make(wrong)
            with pytest.raises(library.NoLibraryError) as caught:
                library.build(again=True)
            assert f"'{wrong}'" in str(caught.value)
            wrong.rmdir() if wrong.is_dir() else wrong.unlink()


def test_what_a_killed_build_left_goes_with_the_next(tmp_path, monkeypatch):
    """It stands beside the library, whatever folder temporary files have, those of the compiler, too."""
    begun = tmp_path / "begun"
    sleepy = pretender(tmp_path, f'echo > "$TMPDIR/of-the-compiler"; touch {begun}; sleep 60')
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = BUILD.replace("print", "import os; os.setsid()\nprint")
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=quick.environment(tmp_path, CXX=str(sleepy), TMPDIR=str(temporary))
    )
    while process.poll() is None and not begun.exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    where = tmp_path / "bert4keras-rwkv" / "kernels"
    assert not list(temporary.iterdir()) and list(where.rglob("of-the-compiler"))
    build_quickly(tmp_path, monkeypatch)
    path = library.build()
    assert {one.name for one in where.iterdir()} == {path.name, path.with_suffix(".sha256").name, "cpu.lock"}


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    build_quickly(tmp_path, monkeypatch)
    monkeypatch.setattr(
        library, "SOURCES", quick.changed_sources(tmp_path / "src", "wkv4.cc", "struct State {", "struct State (")
    )
    with pytest.raises(library.NoLibraryError, match=r"cannot compile wkv4\.cc: .*error"):
        library.build()
    assert not list((tmp_path / "bert4keras-rwkv" / "kernels").glob("*.so"))


def test_no_room_for_it(tmp_path):
    """A file may have 64 KB here: the compiler or what writes the library fails, and nothing is left."""
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16));"
    done = subprocess.run(
        [sys.executable, "-c", limited + BUILD],
        env=quick.environment(tmp_path, CXX=str(quick.compiler(tmp_path))),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "NoLibraryError" in done.stderr.splitlines()[-1], done.stderr
    assert not list((tmp_path / "bert4keras-rwkv" / "kernels").glob("*.so"))


def test_what_is_not_found_is_looked_for_once(monkeypatch):
    calls = []

    def build():
        calls.append(1)
        raise library.NoLibraryError("No.")

    monkeypatch.setattr(library, "_found", {})
    monkeypatch.setattr(library, "build", build)
    for _ in range(2):
        with pytest.raises(library.NoLibraryError, match=r"No\."):
            library.library()
    assert len(calls) == 1


def test_tensors_that_do_not_fit_are_refused():
    """By name and size, whatever Python gave; nothing is read or written."""
    with pytest.raises(ValueError, match=r"wkv4 takes more arguments than 1"):
        library.library().run("wkv4", [(0, 0, (1, 1, 1))], [], 1)
    shapes = [(2, 3, 4), (2, 3, 5), (2, 4), (2, 4), (2, 3, 4), (0,), (0,)]
    with pytest.raises(ValueError, match=r"wkv4 tensor 1, dimension 2: 5, not 4"):
        library.library().run("wkv4", [(0, 0, shape) for shape in shapes], [(0, 0, (1,))] * 3, 1)
    with pytest.raises(ValueError, match=r"no kernel wkv8"):
        library.library().run("wkv8", [], [], 1)


def test_a_library_for_a_kernel_set_that_is_not_there():
    with pytest.raises(ValueError, match=r"'neon'"):
        library.library().choose("neon")


def test_an_instruction_set_that_the_compiler_does_not_know_is_left_out(tmp_path):
    """And all else is built."""
    levels = {"bf16": (4, ("-mnever-heard-of",), ("product",)), "plain": (4, (), library.KERNELS)}
    library._compile([str(quick.compiler(tmp_path))], levels, None, tmp_path / "kernels.so")
    assert library.Library(tmp_path / "kernels.so").levels() == ["plain"]
