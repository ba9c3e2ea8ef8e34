"""The kernels of a CPU as a shared library: found in the installed package or the user's cache, or built there.

One library has the kernels of all instruction sets of this kind of processor, each compiled at its own vector width;
it chooses by itself. It is found by its sources, compiler and options, and never touches Python or a framework. It
also starts the kernels of a GPU, which `cuda` makes.
"""

import ctypes
import functools
import importlib.util
import logging
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bert4keras_rwkv.atomic import atomic_file
from bert4keras_rwkv.ops.kernels.kept import NoLibraryError, digest, folder, is_whole, kept

SOURCES = Path(__file__).parent / "src"
PREBUILT = Path(__file__).parent / "built" / "kernels.so"  # in a wheel for one platform
COMPILERS = ("g++", "clang++", "c++")
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-pthread")
HOSTS, KERNELS = ("host", "cuda_host"), ("matrix_state", "wkv4", "product", "product_many", "product_dense")
# Instruction sets: the floats of a vector, options, and which kernels are made for it.
AVX512 = ("-march=x86-64-v4", "-mprefer-vector-width=512")
X86 = {
    "bf16": (16, (*AVX512, "-mavx512vnni", "-mavx512bf16"), ("product", "product_many")),
    "vnni": (16, (*AVX512, "-mavx512vnni"), ("product", "product_many")),
    "avx512": (16, AVX512, KERNELS),
    "avxvnni": (8, ("-march=x86-64-v3", "-mavxvnni"), ("product", "product_many")),
    "avx2": (8, ("-march=x86-64-v3",), KERNELS),
    "plain": (4, ("-march=x86-64",), KERNELS),
}
NEWER = {"bf16", "vnni", "avxvnni"}  # than some compilers that build all else
LEVELS = {"x86_64": X86, "AMD64": X86, "x86": X86}
SUFFIX = ".so"
BUILDING = "Building the native kernels with %s: once, for about half a minute on two cores. They are kept in '%s'."
DTYPES = {"float32": 0, "bfloat16": 1, "uint8": 2, "int8": 3, "float16": 4}  # as in src/tensors.h
# Products -> which axis of a matrix, the first of its tensors, is that of the outputs.
OUTPUTS = {
    "product_dense": 1,
    **dict.fromkeys((f"product_{name}" for name in ("bfloat16", "int8", "int4")), 0),
    **dict.fromkeys((f"product_many_{name}" for name in ("bfloat16", "int8", "int4")), 0),
}

ONLY_ONE_GRADIENT = (
    "Native kernels have a gradient, but that has none, and this program asks for it. Build the model with "
    "kernel='ops', or set OPS_KERNEL=1."
)


class Library:
    """A loaded library. path: its file."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.handle = ctypes.CDLL(str(path))
            self._levels = self.handle.rwkv_levels
        except (OSError, AttributeError) as error:
            raise NoLibraryError(f"The library '{path}' cannot be loaded: {error}.") from error
        self._levels.restype = ctypes.c_char_p

    def levels(self):
        """The instruction sets of this processor that there are kernels for, the best, which runs, first."""
        return self._levels().decode().split()

    def choose(self, level):
        """Run the kernels of another instruction set, one of `levels`, from now on."""
        if self.handle.rwkv_choose(level.encode()) != 0:
            raise ValueError(f"There are kernels for {', '.join(self.levels())} here. Received: {level!r}.")

    def run(self, kernel, arguments, results, threads):
        """Run a kernel. arguments, results: lists of (address, dtype as in tensors.h, shape), row-major."""
        self.call("rwkv_run", kernel.encode(), *packed(arguments), *packed(results), threads)

    def call(self, name, *arguments):
        """Call a function that leaves a message, and raise a ValueError with it."""
        message = ctypes.create_string_buffer(512)
        if getattr(self.handle, name)(*arguments, message, len(message)):
            raise ValueError(f"A native kernel failed: {message.value.decode(errors='replace')}.")


def rounded_shape(name, x, packed):
    """The shape of x (R, I) as the product `name` takes it: rounded, (R, bytes) uint8, or None for as it is.

    packed: the first tensor of the matrix, a row of which has as many numbers.
    """
    if name not in ("product_many_int8", "product_many_int4"):
        return None
    numbers = packed.shape[1] * (2 if name.endswith("int4") else 1)
    return x.shape[0], numbers + numbers // 32 * 8  # as in src/product_many.cc


def packed(tensors):
    """Tensors, (address, dtype as in tensors.h, shape) each, as an array for C, and its length."""
    return b"".join([_address(address) + _kind(dtype, tuple(shape)) for address, dtype, shape in tensors]), len(tensors)


_address = struct.Struct("P").pack


@functools.lru_cache(1024)
def _kind(dtype, shape):
    """The rest of a `Tensor` of tensors.h behind its address: dtype, rank and six sizes."""
    return struct.pack("=ii6q", dtype, len(shape), *shape, *[0] * (6 - len(shape)))


def library():
    """The library of this machine, loaded.

    Raises:
        NoLibraryError: there is none and it cannot be built, which is found out once.
    """
    if "here" not in _found:
        _found["here"] = _find()
    found = _found["here"]
    if isinstance(found, NoLibraryError):
        raise found
    return found


def is_loaded():
    """Whether `library` has found one in this process."""
    return isinstance(_found.get("here"), Library)


_found = {}


def _find():
    try:
        return Library(PREBUILT if PREBUILT.is_file() else build())
    except NoLibraryError as error:
        return error
    except OSError as error:  # of a file of this package or of XLA
        return NoLibraryError(f"Native kernels cannot be built: {error}.")


@dataclass(frozen=True)
class Plan:
    """What would be built, and where. compiler: its command; version: as in 12.2.0; headers: those of XLA."""

    path: Path
    compiler: tuple[str, ...]
    version: str
    levels: dict
    headers: Path | None


def plan():
    """The `Plan` of this machine. Raises NoLibraryError."""
    where, levels, headers = folder(), _levels(), _ffi_headers()
    compiler = _compiler()
    version = _version(compiler)
    key = digest([(repr((compiler, version)), b"")])[:12]
    return Plan(where / f"{_prefix(levels, headers)}{key}{SUFFIX}", compiler, version, levels, headers)


def found_without_compiler():
    """A library of these sources, whole, that a compiler built which is not here any more; None if there is none.

    Raises NoLibraryError where there is no folder for one.
    """
    built = sorted(folder().glob(f"{_prefix(_levels(), _ffi_headers())}*{SUFFIX}"))
    return next((path for path in built if is_whole(path)), None)


def _prefix(levels, headers):
    """What the file of a library is called, but for what built it."""
    files = {**source_files(), "ffi": b"" if headers is None else (headers / "xla/ffi/api/c_api.h").read_bytes()}
    kind = repr((platform.machine(), OPTIONS, sorted(levels.items())))
    return f"cpu-{digest([*files.items(), (kind, b'')])[:20]}-"


def _levels():
    """The instruction sets of this kind of processor."""
    if sys.platform == "win32":
        raise NoLibraryError("Native kernels are not built on Windows.")
    return LEVELS.get(platform.machine(), {"plain": (4, (), KERNELS)})


def build(again=False):
    """The path of the library in the cache, built if it is not there, not whole, or `again`. Raises NoLibraryError.

    Where there is no compiler, what another has built of these sources serves too, but not `again`.
    """
    try:
        wanted = plan()
    except NoLibraryError:
        if again or (before := found_without_compiler()) is None:
            raise
        return before

    def compile_and_say(made):
        logging.getLogger("bert4keras_rwkv").warning(BUILDING, shlex.join(wanted.compiler), wanted.path.parent)
        _compile(wanted.compiler, wanted.levels, wanted.headers, made)
        Library(made)  # what cannot be loaded is not kept

    return kept(wanted.path, compile_and_say, again)


def build_to(path):
    """Build the library as the file `path`. Raises NoLibraryError."""
    with atomic_file(path) as made:
        _compile(_compiler(), _levels(), _ffi_headers(), made)


def _compile(compiler, levels, headers, target):
    """All kernels for all levels into one library. What is made on the way stands beside it, and goes with it."""
    xla = [] if headers is None else ["-isystem", str(headers)]
    left_out = [level for level in sorted(NEWER & levels.keys()) if not _knows(compiler, levels[level][1])]
    levels = {level: made for level, made in levels.items() if level not in left_out}
    only = ["-DONLY_PLAIN"] if list(levels) == ["plain"] else [f"-DNO_{level.upper()}" for level in left_out]
    tasks = {"host": ("host", [*xla, *only]), "cuda_host": ("cuda_host", xla)}
    for level, (width, options, made) in levels.items():
        for name in made:
            table = f"{name}_{level}"
            tasks[table] = name, [f"-DWIDTH={width}", f"-DTABLE={table}", *options]

    with tempfile.TemporaryDirectory(prefix="objects-", dir=Path(target).parent) as room:

        def run(task):
            name, (source, options) = task
            compiled = Path(room) / f"{name}.o"
            command = [*OPTIONS, *options, "-c", str(SOURCES / f"{source}.cc"), "-o", str(compiled)]
            _made(compiled, compiler, command, f"compile {source}.cc")
            return str(compiled)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(run, tasks.items()))
        linking = ["-shared", "-pthread", *objects, "-o", str(target), "-ldl"]
        _made(Path(target), compiler, linking, "link the kernels")


def _compiler():
    """The command of the C++ compiler: the environment variable CXX, or the first that is found."""
    wanted = os.environ.get("CXX", "").strip()
    for command in _commands(wanted) if wanted else [[name] for name in COMPILERS]:
        if (path := shutil.which(command[0])) is not None:
            return (path, *command[1:])
    names = wanted or ", ".join(COMPILERS)
    raise NoLibraryError(f"Native kernels are built by a C++ compiler, and none is found ({names}).")


def _commands(wanted):
    """What CXX may mean: a program, whose path may have blanks, or one with options, as a shell reads it."""
    try:
        return [[wanted], shlex.split(wanted)]
    except ValueError as error:
        raise NoLibraryError(
            f"CXX is a compiler and its options, as for a shell. Received: {wanted} ({error})."
        ) from error


def _version(compiler):
    """The version of a compiler, as it tells programs; what it prints of itself may be another text each time."""
    said = _said(compiler, ["-x", "c++", "-E", "-P", "-"], "does not run", input="rwkv_version __VERSION__\n")
    found = re.search(r'^rwkv_version "(.*)"', said, re.M)
    if found is None:
        raise NoLibraryError(f"{shlex.join(compiler)} does not answer as a C++ compiler does. CXX names another.")
    return found[1]


def _knows(compiler, options):
    """Whether a compiler takes the options of an instruction set."""
    try:
        return bool(_said(compiler, [*options, "-dM", "-E", "-x", "c++", "-"], "does not run"))
    except NoLibraryError:
        return False


def _made(path, compiler, arguments, doing):
    """Let the compiler write a file; a NoLibraryError if it does not. Its own temporary files stand beside that."""
    _said(compiler, arguments, f"cannot {doing}", env={**os.environ, "TMPDIR": str(path.parent)})
    if not path.is_file() or path.stat().st_size == 0:
        raise NoLibraryError(f"The compiler {shlex.join(compiler)} was to {doing}, and wrote nothing.")


def _said(compiler, arguments, failing, input="", **options):
    """What a compiler prints, or a NoLibraryError with the line that says what is wrong."""
    name = shlex.join(compiler)
    try:
        done = subprocess.run(
            [*compiler, *arguments], capture_output=True, text=True, errors="replace", input=input, **options
        )
    except OSError as error:
        raise NoLibraryError(f"The compiler {name} {failing}: {error.strerror or error}.") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        status = (
            f"exit status {done.returncode}" if done.returncode > 0 else f"it was ended by signal {-done.returncode}"
        )
        line = next((line for line in lines if "error" in line), lines[0] if lines else status)
        raise NoLibraryError(f"The compiler {name} {failing}: {line[:200].rstrip('.')}.")
    return done.stdout


@functools.cache
def key_of_sources():
    """What tells programs that call kernels of these sources from those that call others."""
    return digest(source_files().items())[:16]


def source_files():
    return {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*"))}


def _ffi_headers():
    """The folder of XLA's headers, which jaxlib brings, or None."""
    spec = importlib.util.find_spec("jaxlib")
    found = [Path(place) / "include" for place in spec.submodule_search_locations] if spec else []
    return next((place for place in found if (place / "xla/ffi/api/ffi.h").is_file()), None)
