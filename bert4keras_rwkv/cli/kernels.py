"""`kernels`: the native kernels of this machine, listed, built, checked, removed."""

import importlib
import os
import shlex
from itertools import chain

from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.keras_loader import VARIABLE
from bert4keras_rwkv.ops.kernels import cuda, kept, library, nvrtc
from bert4keras_rwkv.ops.kernels.kept import NoLibraryError


def run(arguments):
    """Do what is asked for; without an option, list. Raises RuntimeError if a kernel is wrong."""
    if arguments.clear:
        try:
            gone = kept.clear(f"cpu-*{library.SUFFIX}", f"cuda-*{cuda.SUFFIX}")
        except (NoLibraryError, OSError) as error:
            raise RuntimeError(str(error)) from error
        print("\n".join(f"Removed {path}" for path in gone) or "There was nothing to remove.")
        if not (arguments.build or arguments.check):
            return
    if arguments.build:
        try:
            print(f"Built {library.build(again=True)}")
        except NoLibraryError as error:
            raise RuntimeError(str(error)) from error
    if arguments.check:
        check(arguments.engine)
    elif not arguments.build:
        print("\n".join(listing(arguments.engine)))


def listing(engine):
    """What there is, in lines. engine: the backend, None: that of KERAS_BACKEND, else JAX."""
    yield "Kernels     wkv4 (RWKV-4), wkv6 (RWKV-5 and 6), wkv7 (RWKV-7), with gradients, on JAX and PyTorch"
    yield "            product (of few rows and a packed matrix), product_many (of more)"
    yield from of_processor()
    yield from of_gpu()
    told, name = os.environ.get("OPS_KERNEL") or "0", engine or os.environ.get(VARIABLE) or "jax"
    if told == "1":
        yield "Not used    OPS_KERNEL is 1: pure Keras ops run where kernel='auto'."
    elif told != "0":
        yield f"Wrong       OPS_KERNEL is 0 (native kernels) or 1 (pure ops), else an error. Received: {told!r}."
    elif name not in ("jax", "torch"):
        yield f"Not used    Keras runs on {name}: pure Keras ops."


def of_processor():
    """Of the kernels for this processor."""
    try:
        if library.PREBUILT.is_file():
            yield f"Library     {library.PREBUILT} (of this package)"
        elif (before := without_compiler()) is not None:
            yield f"Library     {before}"
            yield "Compiler    none is found any more"
        else:
            plan = library.plan()
            yield f"Library     {plan.path}"
            yield f"Compiler    {shlex.join(plan.compiler)}, version {plan.version}"
            if not kept.is_whole(plan.path):
                yield "            It is not built yet: the first use does that, or --build."
                return
        first, *others = library.library().levels()
        yield f"Runs        {first}" + (f" (there are also {', '.join(others)})" if others else "")
    except NoLibraryError as error:
        yield f"None here   {error} Pure Keras ops run."


def without_compiler():
    """The library that will run though there is no compiler, if there is none."""
    try:
        library.plan()
    except NoLibraryError:
        return library.found_without_compiler()
    return None


def is_built():
    """Whether there is a library that can run. Raises NoLibraryError where there cannot be one."""
    return library.PREBUILT.is_file() or without_compiler() is not None or kept.is_whole(library.plan().path)


def of_gpu():
    """Of those for a GPU of NVIDIA, each compiled when it is first used.

    The library starts them; where it is not built yet, it is not built for this.
    """
    found = ", ".join(f"{one} ({one.path})" for one in nvrtc.installed())
    yield f"NVRTC       {found or 'none is found'}"
    try:
        if cubins := list(kept.folder().glob(f"cuda-*{cuda.SUFFIX}")):
            yield f"Cubins      {len(cubins)}, in {kept.folder()}"
        if not is_built():
            return
        library.library()
    except NoLibraryError:  # which was said of the processor
        yield "GPU         Its kernels are started by the library for the processor, and that is not here."
        return
    try:
        device = cuda.device()
        yield f"GPU         {device.name}, sm_{device.architecture}, a driver for CUDA {device.driver // 1000}"
    except NoLibraryError as error:
        yield f"GPU         None here: {error}"
        return
    try:
        yield f"            Its kernels are compiled by NVRTC {cuda.compiler()}."
        heads = ", ".join(map(str, cuda.CHUNKED_HEADS))
        if device.architecture >= cuda.CHUNKED_FROM:
            yield f"            By chunks on tensor cores go wkv6 and wkv7 of bfloat16, for heads of {heads}."
        else:
            yield f"            Chunks on tensor cores and product_many want sm_{cuda.CHUNKED_FROM}, and do not run."
    except NoLibraryError as error:
        yield f"            Its kernels are not compiled: {error}"


def check(engine):
    """Compare all kernels with the loop, or with unpacked matrices, and print the largest errors."""
    name = choose_engine(engine)
    kernels = importlib.import_module("bert4keras_rwkv.ops.kernels.check")
    reason = importlib.import_module("bert4keras_rwkv.ops.kernels.native").why_not()
    if reason is not None:
        raise RuntimeError(reason)
    worst, wrong = {}, []
    for finding in chain(kernels.check_kernels(), kernels.check_products()):
        key = finding.kernel, finding.level, finding.dtype
        worst[key] = max(worst.get(key, 0.0), finding.error, key=lambda error: (error != error, error))  # NaN most
        wrong += [] if finding.right else [finding]
    print(f"Largest difference from the loop, and of products from those of the unpacked matrix, on {name}:")
    wide = max(map(len, (kernel for kernel, _, _ in worst)))
    for (kernel, level, dtype), error in worst.items():
        print(f"  {kernel:{wide}}  {level:8}{dtype:10}{error:.1e}")
    for finding in wrong:
        print(f"Wrong: {finding}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} cases differ. Set OPS_KERNEL=1, and tell us.")
