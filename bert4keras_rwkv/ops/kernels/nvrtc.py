"""NVIDIA's compiler as a library (NVRTC), which the CUDA wheels of JAX and PyTorch bring: from sources to cubins.

It is used as it is, through ctypes: no GPU, no headers of CUDA and no nvcc need be there.
"""

import ctypes
import glob
import importlib.util
import logging
import os
import re

from bert4keras_rwkv.ops.kernels.kept import NoLibraryError

IN_WHEELS = ("cu*/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*")  # in the folder `nvidia`: CUDA 13, CUDA 12
OF_SYSTEM = ("libnvrtc.so.13", "libnvrtc.so.12", "/usr/local/cuda/lib64/libnvrtc.so")
OPTIONS = ("--std=c++17", "--device-as-default-execution-space")


class Nvrtc:
    """One NVRTC. version: as in (12, 9); architectures: those it knows, as in 90."""

    def __init__(self, path):
        self.path, self._library = str(path), ctypes.CDLL(str(path))
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.architectures = sorted(known)

    def target(self, architecture):
        """What to compile for, for a device of an architecture: that, or the nearest before it of its kind; or None."""
        fits = [x for x in self.architectures if x // 10 == architecture // 10 and x <= architecture]
        return max(fits, default=None)

    def cubin(self, name, source, headers, options, log=None):
        """The machine code of a source. headers: its includes by name. log: a list that gets what the compiler says.

        Raises NoLibraryError with the first line about an error.
        """
        program = ctypes.c_void_p()
        texts = [(ctypes.c_char_p * len(headers))(*part) for part in (headers.values(), map(str.encode, headers))]
        self._call("nvrtcCreateProgram", ctypes.byref(program), source, name.encode(), len(headers), *texts)
        try:
            given = [option.encode() for option in (*OPTIONS, *options)]
            failed = self._library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
            said = self._text("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if failed:
                lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"error {failed}"]
                line = next((line for line in lines if "error" in line), lines[0])
                raise NoLibraryError(f"NVRTC {self} cannot compile {name}: {line[:200]}")
            if log is not None:
                log.append(said)
            return self._text("nvrtcGetCUBIN", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, name, program):
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(name, program, text)
        return text.raw

    def _call(self, name, *arguments):
        try:
            failed = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise OSError(f"{self.path} has no {name}") from error
        if failed:
            raise OSError(f"{name} of {self.path} fails with {failed}")

    def __str__(self):
        return ".".join(map(str, self.version))


def paths():
    """Where an NVRTC may be: in wheels, then on the system."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places for pattern in IN_WHEELS for path in glob.glob(os.path.join(place, pattern))]
    return [path for path in sorted(found) if ".alt." not in path] + list(OF_SYSTEM)


def installed():
    """Every `Nvrtc` here, the newest first; of one version the first that `paths` names."""
    found = {}
    for path in paths():
        try:
            one = Nvrtc(path)
        except OSError:  # it is not there, or not whole
            continue
        found.setdefault(one.version, one)
    return [found[version] for version in sorted(found, reverse=True)]


def choose(architecture, driver):
    """The newest NVRTC that knows a device, and whose cubins its driver takes. driver: its CUDA, as in 13000.

    Raises NoLibraryError with the reason if there is none.
    """
    found = installed()
    if not found:
        raise NoLibraryError("NVRTC compiles the kernels of a GPU, and none is found: pip install nvidia-cuda-nvrtc.")
    names = ", ".join(map(str, found))
    taken = [one for one in found if one.version[0] <= driver // 1000]
    if not taken:
        raise NoLibraryError(f"The CUDA driver is older ({driver // 1000}) than every NVRTC here ({names}).")
    fits = [one for one in taken if one.target(architecture) is not None]
    if not fits:
        raise NoLibraryError(f"No NVRTC here ({names}) compiles for this device (sm_{architecture}).")
    logging.getLogger("bert4keras_rwkv").info("NVRTC %s compiles the kernels of the GPU (%s).", fits[0], fits[0].path)
    return fits[0]


def includes(source, files):
    """The names of the files that a source takes in, and those that these do."""
    names = re.findall(rb'#include "(.+?)"', files[source])
    return sorted({found for name in names for found in (name.decode(), *includes(name.decode(), files))})
