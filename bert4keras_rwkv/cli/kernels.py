"""`kernels`: the native kernels of this machine, listed, built, checked, removed."""

import importlib
import os

from bert4keras_rwkv.cli.backend import choose_engine
from bert4keras_rwkv.ops.kernels import library
from bert4keras_rwkv.ops.kernels.library import NoLibraryError


def run(arguments):
    """Do what is asked for; without an option, list. Raises RuntimeError if a kernel is wrong."""
    if arguments.clear:
        gone = library.clear()
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
        print("\n".join(listing()))


def listing():
    """What there is, in lines."""
    yield "Kernels     wkv4 (RWKV-4), wkv6 (RWKV-5 and 6), wkv7 (RWKV-7), with gradients, for CPUs, on JAX and PyTorch"
    try:
        if library.PREBUILT.is_file():
            yield f"Library     {library.PREBUILT} (of this package)"
        else:
            plan = library.plan()
            yield f"Library     {plan.path}"
            yield f"Compiler    {plan.version} ({plan.compiler})"
            if not plan.is_built():
                yield "            It is not built yet: the first use does that, or --build."
                return
        first, *others = library.library().levels()
        yield f"Runs        {first}" + (f" (there are also {', '.join(others)})" if others else "")
    except NoLibraryError as error:
        yield f"None here   {error} Pure Keras ops run."
    if os.environ.get("OPS_KERNEL", "0") == "1":
        yield "Not used    OPS_KERNEL is 1: pure Keras ops run where kernel='auto'."


def check(engine):
    """Compare all kernels with the loop, and print the largest errors."""
    name = choose_engine(engine)
    kernels = importlib.import_module("bert4keras_rwkv.ops.kernels.check")
    reason = importlib.import_module("bert4keras_rwkv.ops.kernels.native").why_not()
    if reason is not None:
        raise RuntimeError(reason)
    worst, wrong = {}, []
    for finding in kernels.check_kernels():
        key = finding.kernel, finding.level, finding.dtype
        worst[key] = max(worst.get(key, 0.0), finding.error)
        wrong += [] if finding.right else [finding]
    print(f"Largest difference from the loop, of the largest number of each tensor, on {name}:")
    for (kernel, level, dtype), error in worst.items():
        print(f"  {kernel}  {level:8}{dtype:10}{error:.1e}")
    for finding in wrong:
        print(f"Wrong: {finding}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} cases differ from the loop. Set OPS_KERNEL=1, and tell us.")
