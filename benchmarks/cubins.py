"""What NVRTC makes of the kernels for GPUs, as the table of docs/kernels.md; no GPU is needed.

`python benchmarks/cubins.py [LIBNVRTC ...]` prints the table for these compilers, or for those that are found. With
--all it compiles every kernel for every head size from 16 to 128, and every number of rows of a product, and prints the
longest time and what is spilled.
"""

import re
import sys
import time

from bert4keras_rwkv.ops.kernels import cuda, library, nvrtc

KERNELS = [(name, part) for name in cuda.SOURCES for part in cuda.parts(name)]


def sizes(name, all_of_them=False):
    """The head sizes that a kernel is compiled for, or the numbers of rows of a product."""
    if name.startswith("product"):
        rows = cuda.MANY_ROWS if "many" in name else cuda.FEW_ROWS
        return rows if all_of_them else rows[:: len(rows) - 1]
    if name == "round_rows":
        return (0,)
    if name.endswith("_chunked"):
        return cuda.CHUNKED_HEADS if all_of_them else cuda.CHUNKED_HEADS[1::2]
    return (0,) if name == "wkv4" else range(16, 129) if all_of_them else (64, 128)


def measure(compiler, name, part, N, architecture):
    """Registers a thread, bytes spilled, bytes of shared memory, seconds of this process."""
    files, source = library.source_files(), cuda.SOURCES[name]
    headers = {name: files[name] for name in nvrtc.includes(source, files)}
    options = cuda.Key(name, part, N, ("bf16", "float"), architecture).options()
    options += [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
    log, begin = [], time.process_time()
    compiler.cubin(source, files[source], headers, options, log)
    took = time.process_time() - begin
    patterns = r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes smem"
    return *(int((re.findall(pattern, log[0]) or [0])[-1]) for pattern in patterns), took


def table(compilers):
    names = " | ".join(f"{what}, {one}" for one in compilers for what in ("registers", "spilled", "shared", "seconds"))
    yield f"| kernel | {names} |"
    yield "|---" * (1 + 4 * len(compilers)) + "|"
    for name, part in KERNELS:
        for N in sizes(name):
            found = [measure(one, name, part, N, 90) for one in compilers]
            cells = " | ".join(f"{a} | {b} | {c} | {s:.2f}" for a, b, c, s in found)
            yield f"| {name.replace('_', ' ')} {part}{f', {N}' if N else ''} | {cells} |"


def every_size(compiler, architectures=(90, 120)):
    longest, spilled = 0.0, []
    for name, part in KERNELS[2:]:
        for N in sizes(name, True):
            for architecture in architectures:
                _, spill, _, took = measure(compiler, name, part, N, architecture)
                longest = max(longest, took)
                spilled += [f"{name} {part} {N} sm_{architecture}: {spill}"] if spill else []
    yield f"NVRTC {compiler}: at most {longest:.2f} seconds; spilled bytes: {'; '.join(spilled) or 'none'}"


if __name__ == "__main__":
    paths = [x for x in sys.argv[1:] if x != "--all"]
    compilers = [nvrtc.Nvrtc(path) for path in paths] or nvrtc.installed()
    lines = (line for one in compilers for line in every_size(one)) if "--all" in sys.argv else table(compilers)
    for line in lines:
        print(line, flush=True)
