"""The kernels of an NVIDIA GPU: compiled when one is first used, kept in the cache folder, started by src/cuda_host.cc.

The host asks for a kernel by a key (`Key`), and gets a cubin. What names a cubin in the folder is all that it is made
of: sources, compiler, architecture and options.
"""

import ctypes
from dataclasses import dataclass

from bert4keras_rwkv.ops.kernels import library as host
from bert4keras_rwkv.ops.kernels import nvrtc
from bert4keras_rwkv.ops.kernels.kept import NoLibraryError, digest, folder, kept

DRIVER = "libcuda.so.1"
LARGEST_HEAD = 128  # of which there is a gradient: MOST_GRADIENT in geometry.h
SUFFIX = ".cubin"
PACKED = {"bfloat16": 16, "int8": 8, "int4": 4}  # of what there are products: bits
SOURCES = {
    "wkv4": "wkv4.cu",
    "wkv6": "matrix_state.cu",
    "wkv7": "matrix_state.cu",
    "wkv6_chunked": "wkv6_chunked.cu",
    "wkv7_chunked": "wkv7_chunked.cu",
    **{f"product_{name}": "product.cu" for name in PACKED},
    **{f"product_many_{name}": "product_many.cu" for name in PACKED},
    "round_rows": "round_rows.cu",
}
CHUNKED_HEADS, CHUNKED_FROM = (16, 32, 48, 64), 80  # what goes by chunks, and from which architecture: geometry.h
FEW_ROWS, MANY_ROWS = (1, 2, 4, 8), (16, 32, 64)  # that products are compiled for; many want tensor cores, as chunks do
MISSING = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char), ctypes.c_int)


@dataclass(frozen=True)
class Device:
    """A GPU. architecture: as in 90; driver: the CUDA that the driver knows, as in 13000."""

    name: str
    architecture: int
    driver: int


@dataclass(frozen=True)
class Key:
    """What the host asks for.

    name: one of `SOURCES`; part: one of `parts`; N: the head size, of a product for how many rows it is; dtypes: of the
    inputs, of w.
    """

    name: str
    part: str
    N: int
    dtypes: tuple[str, str]
    architecture: int

    @classmethod
    def read(cls, text):
        name, part, N, inputs, decay, architecture = text.split()
        return cls(name, part, int(N), (inputs, decay), int(architecture))

    def options(self):
        options = [f"-D{self.part.upper()}", f"-DINPUT={self.dtypes[0]}"]
        if self.name.startswith("product"):
            options += [f"-DAT_ONCE={self.N}", f"-DBITS={PACKED[self.name.rpartition('_')[2]]}"]
        elif self.name not in ("wkv4", "round_rows"):
            options += [f"-DDECAY={self.dtypes[1]}", f"-DN={self.N}"]
            is_chunked = self.name.endswith("_chunked")
            options += [f"-DCOLUMNS={self.N}" if is_chunked else f"-DDELTA={int(self.name == 'wkv7')}"]
        return options


def parts(name):
    """The kernels that there are of one of `SOURCES`."""
    if not name.startswith("wkv"):
        return ("forward",)
    return ("forward", "step", "gradient") if name in ("wkv6", "wkv7") else ("forward", "gradient")


def product_of(rows):
    """'product' or 'product_many', the kernels that multiply so many rows by a packed matrix here; None: none."""
    if rows <= FEW_ROWS[-1]:
        return "product"
    return "product_many" if rows <= MANY_ROWS[-1] and device().architecture >= CHUNKED_FROM else None


def device():
    """The `Device` here, its driver open; found once. Raises NoLibraryError with the reason if there is none."""
    return _once("device", _open)


def compiler():
    """What compiles for this device; found once. Raises NoLibraryError."""
    return _once("compiler", lambda: nvrtc.choose(device().architecture, device().driver))


def _once(name, find):
    if name not in _found:
        try:
            _found[name] = find()
        except NoLibraryError as error:
            _found[name] = error
    if isinstance(_found[name], NoLibraryError):
        raise _found[name]
    return _found[name]


_found = {}


def _open():
    _call("rwkv_cuda_open", DRIVER.encode(), _missing)
    name, architecture, driver = ctypes.create_string_buffer(128), ctypes.c_int(), ctypes.c_int()
    found = host.library().handle.rwkv_cuda_device(name, 128, ctypes.byref(architecture), ctypes.byref(driver))
    if found != 0:
        raise NoLibraryError("The CUDA driver does not describe its device.")
    return Device(name.value.decode(errors="replace"), architecture.value, driver.value)


def _call(name, *arguments):
    """Call a function of the host that leaves a message, and raise a NoLibraryError with it."""
    message = ctypes.create_string_buffer(512)
    if getattr(host.library().handle, name)(*arguments, message, len(message)):
        raise NoLibraryError(f"{message.value.decode(errors='replace')}.")


def run(kernel, arguments, results, stream):
    """Start a kernel. arguments, results: as in `library.Library.run`, in the device's memory; stream: a CUstream."""
    device()
    given = kernel.encode(), *host.packed(arguments), *host.packed(results), ctypes.c_void_p(stream)
    host.library().call("rwkv_cuda_run", *given)


def prepare(kernel, arguments, results):
    """Compile and load what `run` needs for tensors of these dtypes and shapes, whatever their addresses."""
    device()
    host.library().call("rwkv_cuda_prepare", kernel.encode(), *host.packed(arguments), *host.packed(results))


def cubin(key):
    """The path of the cubin of a `Key`, compiled if it is not there or not whole. Raises NoLibraryError."""
    compiling, source = compiler(), SOURCES[key.name]
    target = compiling.target(key.architecture)
    if target is None:
        raise NoLibraryError(f"NVRTC {compiling} does not compile for this device (sm_{key.architecture}).")
    files = host.source_files()
    headers = {name: files[name] for name in nvrtc.includes(source, files)}
    options = [f"--gpu-architecture=sm_{target}", *key.options()]
    made_of = [(source, files[source]), *headers.items(), (repr((str(compiling), options)), b"")]

    def build(made):
        with open(made, "wb") as file:
            file.write(compiling.cubin(source, files[source], headers, options))

    return kept(folder() / f"cuda-{digest(made_of)[:20]}{SUFFIX}", build)


@MISSING
def _missing(text, message, room):
    """Hand the host the kernel that it asks for; else 1, and why not."""
    try:
        key = Key.read(text.decode())
        image = ctypes.create_string_buffer(cubin(key).read_bytes())
        _call("rwkv_cuda_add", text, image, key.part.encode())
    except Exception as error:  # nobody above could catch it
        said = (str(error).rstrip(".") or type(error).__name__).encode()[: room - 1] + b"\0"
        ctypes.memmove(message, said, len(said))
        return 1
    return 0
