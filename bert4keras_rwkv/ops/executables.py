"""Compiled programs kept in the user's cache folder, so that the next process neither traces nor compiles them.

JAX's own compile cache needs the traced program to find an entry, and tracing and lowering a deep network takes
seconds. Here an entry is found by what the program is made of: the description its maker gives, the code that is
loaded, the versions, options and device, and the shapes and dtypes of what it is called with.

An entry holds machine code, and loading it runs what is in it, as with JAX's cache: only a folder of the user's own
that nobody else can write to is used. An entry that is damaged, or another program's, is written anew.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import platform
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path

from bert4keras_rwkv import __version__
from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.ops.cache import VARIABLE, UnusableError, own_folder
from bert4keras_rwkv.ops.kernels.choose import native_code
from bert4keras_rwkv.ops.kernels.on_jax import register

LARGEST = 1 << 29  # bytes of all entries; those not used for longest go first
SUFFIX, UNFINISHED = ".program", ".unfinished"
ABANDONED = 3600  # seconds after which an unfinished file has no writer any more
PACKAGE = __name__.split(".")[0]
# Options of JAX that are no part of what is computed.
IRRELEVANT = ("cache", "log", "dump", "explain", "traceback", "color")

logger = logging.getLogger("bert4keras_rwkv")


@dataclass(frozen=True)
class Description:
    """What a program is made of, beside the code and what it is called with.

    parts: anything whose `repr` says all that the function closes over. modules: names of the modules whose code it
    runs; what they import from this package is found from there.
    """

    parts: tuple
    modules: tuple[str, ...] = ()

    def of(self, *parts):
        """That of one of several programs."""
        return Description((*self.parts, *parts), self.modules)


def programs_folder():
    """The folder of entries, made if it is not there: that of BERT4KERAS_RWKV_CACHE, or in the user's cache folder.

    None where the variable is 'off', or where the folder cannot be used, which is said once.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    try:
        return own_folder("programs", chosen)
    except UnusableError as error:
        _say(str(error), chosen or "the user's cache folder")
        return None


@functools.cache
def _say(why, folder):
    logger.warning(
        "Compiled programs are not kept in '%s' (%s). Name a folder of your own with %s, or 'off'.",
        folder,
        why,
        VARIABLE,
    )


class Kept:
    """A jitted function that looks for its executables in the folder first, called as it is.

    program: of `jax.jit`, taking (list of values of variables, *args). description: a function that returns its
    `Description`, asked when an executable is wanted.
    """

    def __init__(self, program, description):
        self._program, self._description, self._loaded = program, description, {}

    def __call__(self, values, *args):
        import jax

        leaves, tree = jax.tree.flatten(args)
        shapes = tree, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if shapes not in self._loaded:
            self._loaded[shapes] = self._found(values, args)
        return self._loaded[shapes](values, *args)

    def _found(self, values, args):
        """Something to call with arguments like these."""
        import jax

        folder = programs_folder()
        if folder is None or len(jax.devices()) > 1 or jax.config.jax_disable_jit or _elsewhere(values):
            return self._program
        key = _key(self._description(), values, args)
        path = folder / (hashlib.sha256(key).hexdigest()[:40] + SUFFIX)
        executable = _read(path, key)
        if executable is None:
            executable = _compiled(self._program, values, args)
            _write(path, key, executable)
        return executable


def _elsewhere(values):
    """Whether values of variables lie on another device than that which `_device` tells of."""
    import jax

    return any(value.devices() != {jax.devices()[0]} for value in values)


def _compiled(program, values, args):
    with _without_compile_cache():
        return program.lower(values, *args).compile()


@contextlib.contextmanager
def _without_compile_cache():
    """Without JAX's own cache: what comes out of that lacks functions once it is written again."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        reset_cache()  # JAX asks for the option once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def _read(path, key):
    """The executable of an entry, None if there is none that is whole and of this key."""
    from jax.experimental.serialize_executable import deserialize_and_load

    if native_code() is not None:
        register()  # before a program that calls them is loaded
    try:
        data = path.read_bytes()
        digest, content = data[:32], data[32:]
        if digest != hashlib.sha256(key + content).digest():
            return None
        executable = deserialize_and_load(*pickle.loads(content))
        os.utime(path)  # what is used stays
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever an entry does that this JAX cannot take: it is made anew
        logger.debug("Not used: %s (%s: %s)", path, type(error).__name__, error)
        return None
    return executable


def _write(path, key, executable):
    """Keep an executable: whole or not at all. What cannot be kept is used all the same."""
    from jax.experimental.serialize_executable import serialize

    try:
        content = pickle.dumps(serialize(executable))
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:  # a device that cannot give it
        logger.debug("Not kept: %s: %s", type(error).__name__, error)
        return
    try:
        handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(key + content).digest())
                file.write(content)
            os.replace(unfinished, path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
        _prune(path.parent)
    except OSError as error:
        _say(error.strerror, path.parent)


def _prune(folder, largest=LARGEST):
    """Remove the entries not used for longest until the rest is small enough, and what was never finished."""
    entries, now = [], time.time()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # somebody else prunes, too
            status = path.stat()
            if path.suffix == SUFFIX:
                entries.append((status.st_mtime, status.st_size, path))
            elif path.suffix == UNFINISHED and now - status.st_mtime > ABANDONED:
                path.unlink()
    size = sum(entry[1] for entry in entries)
    for _, taken, path in sorted(entries):
        if size <= largest:
            break
        path.unlink(missing_ok=True)
        size -= taken


def _key(description, values, args):
    """Bytes that are different where the executable could be."""
    import jax

    leaves, tree = jax.tree.flatten((values, args))
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
    parts = [description.parts, _code(description.modules), str(tree), shapes, _versions(), _options(), _device()]
    return "\n".join(map(repr, parts)).encode()


def _versions():
    import jax
    import jaxlib
    import numpy

    kernels = os.environ.get("OPS_KERNEL"), native_code()
    return [__version__, sys.version, *kernels, *(module.__version__ for module in (jax, jaxlib, keras, numpy))]


def _options():
    """What is set for this process that changes programs."""
    import jax

    jax_options = sorted(name for name in jax.config.values if not any(word in name for word in IRRELEVANT))
    keras_options = ("floatx", "epsilon", "image_data_format", "dtype_policy")
    return [
        [(name, getattr(jax.config, name, None)) for name in jax_options],
        [str(getattr(getattr(keras.config, name)(), "name", getattr(keras.config, name)())) for name in keras_options],
        [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "OPS_KERNEL")],
    ]


def _device():
    """What machine code is made for."""
    import jax

    (device,) = jax.devices()
    client = device.client
    found = [device.platform, device.device_kind, client.platform_version]
    return found + _processor() if device.platform == "cpu" else found


@functools.cache
def _processor():
    """The features of this machine's processor, and how many of them this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        flags = sorted({line for line in info if line.startswith(("flags", "Features", "model name"))})
    return [platform.machine(), platform.processor(), flags, available]


def _code(names):
    """A digest of the functions of these modules and of what they import from this package, as they are loaded now.

    Not of files: those may have changed since, and a function may have been replaced.
    """
    found, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in sys.modules or name == PACKAGE:
            continue
        members = vars(sys.modules[name])
        own = {key: value for key, value in members.items() if f"{name}.{key}" not in sys.modules}  # no submodules
        found[name] = [(key, _content(own[key])) for key in sorted(own) if not key.startswith("__")]
        for value in own.values():
            if isinstance(value, types.ModuleType | types.FunctionType | type):
                home = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
                waiting += [home] * (str(home).split(".")[0] == PACKAGE)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _content(value, within_class=False):
    """What tells a member of a module from another: code and constants; of other things, nothing."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        return [_content(function) for function in (value.fget, value.fset)]
    if isinstance(value, type) and not within_class:
        members = vars(value) if value.__module__.split(".")[0] == PACKAGE else {}
        return [(key, _content(members[key], True)) for key in sorted(members)]
    if isinstance(value, types.FunctionType):
        under = getattr(value, "__wrapped__", None)
        return [_plain(value.__code__), _plain(value.__defaults__), None if under is None else _content(under, True)]
    return _plain(value)


def _plain(value):
    """Code and constants in a form whose `repr` is the same in every process."""
    if isinstance(value, types.CodeType):
        return _digest(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return repr(value) if isinstance(value, str | bytes | int | float | complex | None) else type(value).__name__


@functools.cache
def _digest(code):
    inside = [code.co_code.hex(), code.co_names, code.co_freevars, [_plain(one) for one in code.co_consts]]
    return hashlib.sha256(repr(inside).encode()).hexdigest()
